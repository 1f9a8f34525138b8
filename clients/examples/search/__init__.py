"""A search page to see the kit at work: the first stage's order beside what the ranking server makes of it.

    make search    builds what is missing, starts Triton and the page, and prints the address

first_stage   products that hold a word of the query, and products that sell
ranking       the server's endpoints, asked within a deadline, and where the time went
why           what each word or field adds to a score
answers       what the page is told
service       the four put together; knows nothing of HTTP
app           the service over HTTP, with the page (page/)
prepare       builds and stores what is missing of the model repository
triton        the Triton under the page: loads endpoints when they are asked for, and starts again
run           everything together

An example, no part of the distribution `tritonrank-client`: besides the client it uses builders, perf and server.
"""
