"""The search page in a headless browser, against the real server.

    SEARCH_SCREENSHOTS=docs/images pytest tests/clients/test_search_page.py -k screenshots

takes the pictures of the documents: real products, ranked by the tests' kit (`python -m tests.support.kit` builds it).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from rich.console import Console
from tritonrank_client import InvalidRequest

from builders.core.recipe import load_recipes
from builders.core.workspace import Workspace
from builders.data.beir import Product, Request
from builders.data.find import find_data, load_judged
from builders.data.synthetic import write_generated
from builders.publish.item_store import ItemStore, table_name
from builders.publish.manifest import PublishedVersion, read_manifest, write_manifest
from clients.examples.search.app import search_app, served
from clients.examples.search.first_stage import Catalogue, Customers
from clients.examples.search.prepare import prepare, purchases_of, tables_of
from clients.examples.search.ranking import RankingServer, published_endpoints
from clients.examples.search.run import running
from clients.examples.search.service import SearchService, UnknownChoice, described
from clients.examples.search.triton import LoadedOnce
from clients.examples.search.why import Explainer, whole_words
from server import TritonServer
from tests.support.kit import WORKSPACE
from tests.support.search_page import CUSTOMERS, PRODUCTS, SNEAKY, UNKNOWN, write_repository

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = "SEARCH_SCREENSHOTS"
WAIT_MS = 30_000
"""For what is waited for; a busy machine is slow."""
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
expect.set_options(timeout=WAIT_MS)


# ---------------------------------------------------------------- without a browser
def test_products_are_found_by_their_words_the_best_first_and_ties_by_id() -> None:
    names = {"P2": "a red mug", "P1": "a red mug", "P3": "red red red shoes and boots", "P4": "a blue jug"}
    catalogue = Catalogue({item_id: Product(item_id, title) for item_id, title in names.items()})

    assert catalogue.found("red mug") == ["P1", "P2", "P3"]
    assert catalogue.found("red mug", count=1) == ["P1"]
    assert catalogue.found("the") == catalogue.found("yellow") == []


def test_a_customer_is_offered_what_they_have_not_bought_in_the_order_of_popularity() -> None:
    customers = Customers(PRODUCTS, {"7": Request(history=("P01", "P03"))})

    assert customers.popular("7", 3) == ["P02", "P04", "P05"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("item: run", 1.0), ("item: ##ning", 0.5)], [("item: running", 1.5)]),
        ([("query: run", 1.0), ("item: ##ning", 0.5)], [("query: run", 1.0), ("item: ##ning", 0.5)]),
        ([("price=3.0", 1.0), ("brand=##", 0.5)], [("price=3.0", 1.0), ("brand=##", 0.5)]),
    ],
)
def test_a_words_pieces_are_joined(parts: list[tuple[str, float]], words: list[tuple[str, float]]) -> None:
    assert whole_words(parts) == words


def test_a_product_is_described_by_what_is_known_of_it() -> None:
    product = Product("B1", "MUG", brand="Acme", price=1234.5, rating=4.55, rating_count=1200)

    assert described(product, "$").title == "Mug"
    assert described(product, "$").about == "Acme · $1,234.50 · ★ 4.5 (1,200)"
    assert described(Product("B2", ""), "$").title == "B2"
    assert described(Product("B2", ""), "$").about == ""


@pytest.mark.parametrize(
    ("recipe", "shown"), [("recipes/intent.toml", False), ("recipes/two_tower.toml", True), ("my/own.toml", True)]
)
def test_a_ranker_of_something_else_than_products_is_not_offered(recipe: str, shown: bool, tmp_path: Path) -> None:
    write_repository(tmp_path)
    manifest = read_manifest(tmp_path)
    rising = {1: PublishedVersion(built_from={"recipe": recipe}, since="")}
    write_manifest(tmp_path, manifest.model_copy(update={"models": {**manifest.models, "rising_fp32_onnx": rising}}))

    endpoints = published_endpoints(tmp_path, load_recipes())
    assert list(endpoints) == ["rank", "recommend", *["rank_rising_fp32_onnx"] * shown]


# ---------------------------------------------------------------- the server and the page
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("models")
    write_repository(repository)
    with TritonServer(
        repository, ["rank", "recommend"], verify="hash", grpc_port=0, http_port=0, metrics_port=0
    ) as server:
        yield server


@pytest.fixture(scope="module")
def service(server: TritonServer) -> Iterator[SearchService]:
    """Explained by the network of `two_tower`."""
    endpoints = {
        name: dataclasses.replace(endpoint, recipe="two_tower")
        for name, endpoint in published_endpoints(server.repository, {}).items()
    }
    ranking = RankingServer(server.grpc_url, endpoints, LoadedOnce(server))
    yield SearchService(
        ranking, Catalogue(PRODUCTS), Explainer(load_recipes()), customers=CUSTOMERS, examples=["green teapot"]
    )
    ranking.close()


@pytest.fixture(scope="module")
def address(service: SearchService) -> Iterator[str]:
    with served(search_app(service)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Fails where the page logs an error or asks anything of another address."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("data:", address)) else faults.append(request.url)
    )
    page.goto(address)
    yield page
    page.close()
    assert faults == []


def search(page: Page, query: str) -> None:
    """Type and press Enter, and wait for the answer to it."""
    page.locator("#query").fill(query)
    page.locator("#query").press("Enter")
    expect(page.locator("#summary")).to_contain_text(f"for “{query}”")


def ids(page: Page, order: str) -> list[str | None]:
    """Of the products shown."""
    return [row.get_attribute("data-id") for row in page.locator(f"#{order} li").all()]


def falling(found: list[str]) -> list[str]:
    """What `rank` makes of them: the one that it does not know comes last."""
    return sorted(found, key=lambda item_id: (item_id != UNKNOWN, item_id), reverse=True)


@pytest.mark.server
def test_an_answer_has_both_orders_and_times_that_the_server_counted(service: SearchService) -> None:
    answer = service.search("red mug", "rank")

    assert answer.degraded is None and answer.model == "falling_fp32_onnx"
    assert answer.ranked == falling(answer.first_stage) != answer.first_stage
    assert answer.scores[-1] is None and answer.ranked[-1] == UNKNOWN
    assert answer.times.compute_ms is not None and answer.times.compute_ms > 0
    assert answer.times.queue_ms is not None and answer.times.queue_ms >= 0
    assert answer.times.first_stage_ms > 0 and answer.times.client_ms > 0


@pytest.mark.server
def test_a_query_that_no_product_has_a_word_of_asks_no_server(service: SearchService) -> None:
    answer = service.search("zebra", "rank")

    assert (answer.ranked, answer.model, answer.degraded) == ([], "", None)


@pytest.mark.server
def test_what_can_never_be_answered_is_refused(service: SearchService) -> None:
    with pytest.raises(InvalidRequest, match="query"):
        service.search("red " * 1000, "rank")
    with pytest.raises(UnknownChoice, match=r"'recommend' is not published here, wanted one of rank, rank_rising"):
        service.search("red", "recommend")
    with pytest.raises(UnknownChoice, match="customer '8'"):
        service.recommend("8", "recommend")
    with pytest.raises(UnknownChoice, match="item 'P99'"):
        service.why("rank", "P99", query="red")


@pytest.mark.server
def test_an_endpoint_that_cannot_be_loaded_is_told_over_the_first_stages_order(server: TritonServer) -> None:
    endpoints = published_endpoints(server.repository, {})
    absent = dataclasses.replace(endpoints["rank"], name="rank_absent")
    ranking = RankingServer(server.grpc_url, {"rank_absent": absent}, LoadedOnce(server))
    ranked = ranking.ask("rank_absent", Request("red mug"), ["P02", "P01"])
    ranking.close()

    assert ranked.ids == ["P02", "P01"] and ranked.scores == [None, None]
    assert ranked.degraded is not None and ranked.degraded.step == "first_stage"
    assert "rank_absent was not loaded" in ranked.degraded.reason


@pytest.mark.server
@needs_browser
def test_a_search_shows_the_first_stage_beside_what_the_server_makes_of_it(page: Page) -> None:
    search(page, "red mug")

    found = Catalogue(PRODUCTS).found("red mug")
    assert ids(page, "before") == found[:10]
    assert ids(page, "after") == falling(found)[:10]
    best = page.locator("#after li").first
    expect(best.locator(".move")).to_contain_text(f"▲ {found.index('P31')}")
    expect(best.locator(".title")).to_have_text(SNEAKY)
    expect(page.locator("#before li").first.locator(".move")).to_contain_text(f"→ {falling(found).index(found[0]) + 1}")
    moved = sum(before != after for before, after in zip(found, falling(found), strict=True))
    expect(page.locator("#summary")).to_have_text(f"32 products for “red mug”, {moved} moved by falling_fp32_onnx.")
    expect(page.locator("#times")).to_contain_text("server compute")
    page.locator("#all").click()
    assert ids(page, "after") == falling(found)
    expect(page.locator(f"#after [data-id={UNKNOWN}]")).to_contain_text("the item store does not know it")


@pytest.mark.server
@needs_browser
def test_the_keyboard_alone_searches_and_opens_and_closes_a_why(page: Page) -> None:
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("red mug")
    page.keyboard.press("Enter")
    first = page.locator("#after li").first.locator(".why")
    expect(first).to_be_visible()
    expect(page.get_by_role("status").first).to_contain_text("moved by")
    while not first.evaluate("each => each === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".reasons")).to_contain_text("query: mug")
    expect(page.locator(".reasons")).to_contain_text("Score")
    page.keyboard.press("Escape")
    expect(page.locator(".reasons")).to_have_count(0)
    expect(first).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()


@pytest.mark.server
@needs_browser
def test_another_ranker_is_loaded_when_it_is_picked_and_the_address_keeps_it(page: Page) -> None:
    search(page, "red mug")
    page.locator("#endpoint").select_option("rank_rising_fp32_onnx")

    expect(page.locator("#summary")).to_contain_text("moved by rising_fp32_onnx")
    assert ids(page, "after")[:3] == ["P01", "P02", "P03"]
    page.reload()
    expect(page.locator("#summary")).to_contain_text("moved by rising_fp32_onnx")


@pytest.mark.server
@needs_browser
def test_popular_products_are_re_ordered_for_a_customer(page: Page) -> None:
    page.get_by_label("For a customer").check()

    expect(page.locator("#bought")).to_have_text("Bought last: red mug large large large · Green teapot · red mug")
    expect(page.locator("#summary")).to_contain_text("moved by customers_fp32_onnx")
    assert ids(page, "before")[:4] == ["P01", "P02", "P04", "P06"]
    assert ids(page, "after")[0] == "P31"


@pytest.mark.server
@needs_browser
def test_a_refused_query_and_one_without_a_product_are_told(page: Page) -> None:
    search(page, "zebra")
    expect(page.locator("#summary")).to_contain_text("No title holds a word of this query")

    page.locator("#query").fill("red " * 1000)
    page.locator("#query").press("Enter")
    expect(page.locator("#problem")).to_contain_text("query")
    page.get_by_role("button", name="green teapot").click()
    expect(page.locator("#summary")).to_contain_text("1 product for “green teapot”")
    expect(page.locator("#problem")).to_be_hidden()


@pytest.mark.server
@needs_browser
def test_results_go_on_without_the_server_and_are_re_ordered_again_when_it_is_back(
    page: Page, server: TritonServer
) -> None:
    search(page, "red mug")
    expect(page.locator("#degraded")).to_be_hidden()
    server.kill()
    server.wait()
    search(page, "large red mug")
    found = Catalogue(PRODUCTS).found("large red mug")

    expect(page.locator("#degraded")).to_contain_text("this is the first stage's order")
    expect(page.locator("#degraded")).to_contain_text("UNAVAILABLE")
    assert ids(page, "before") == ids(page, "after") == found[:10]
    assert page.locator(".why").count() == 0

    server.restart()
    expect(page.locator("#degraded")).to_be_hidden()
    assert ids(page, "after") == falling(found)[:10]


@pytest.mark.server
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_re_ordered_list_first_and_nothing_beside_the_screen(
    browser: Browser, address: str, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.goto(address)
    search(page, "red mug")

    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#after").bounding_box()["y"] < page.locator("#before").bounding_box()["y"]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(17, 19, 24)") == (scheme == "dark")
    context.close()


# ---------------------------------------------------------------- from nothing, and pictures
@pytest.mark.slow
@pytest.mark.server
def test_what_a_fresh_checkout_lacks_is_built_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_generated(tmp_path / "data")
    source = find_data(tmp_path / "data")
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    with running(workspace, source, Console()) as (_, address):
        found = httpx2.get(f"{address}/api/search", params={"query": "coffee mug", "endpoint": "rank"}).json()
        customers = httpx2.get(f"{address}/api/start").json()["customers"]
    assert found["degraded"] is None and found["ranked"] and None not in found["scores"]
    assert customers
    assert "'rank' is not published: two_tower_fp32_onnx is built" in capsys.readouterr().out

    judged, (purchases, _) = load_judged(source.folder), purchases_of(source)
    prepare(judged, purchases, source, workspace, Console())
    assert capsys.readouterr().out == ""

    [lost, *others], [table] = judged.products, tables_of(workspace, "rank")
    with ItemStore(workspace.item_store) as store:
        store.remove(table_name(*table), [lost], {"two_tower"})
        store.put(*table, [("of another catalogue", b"")])
    prepare(judged, purchases, source, workspace, Console())
    with ItemStore(workspace.item_store) as store:
        assert store.ids(*table) == {lost, *others, "of another catalogue"}
    assert f"two_tower: 1 of {len(judged.products)} products are not in the item store" in capsys.readouterr().out


@pytest.mark.server
@needs_browser
@pytest.mark.skipif(not os.environ.get(SCREENSHOTS), reason=f"{SCREENSHOTS} names no folder for the pictures")
def test_screenshots_of_real_products(browser: Browser) -> None:
    folder = Path(os.environ[SCREENSHOTS])
    with running(WORKSPACE, find_data(), Console()) as (server, address):
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(address)
        page.locator("#endpoint").select_option("rank_cross_encoder_int8_onnx")
        search(page, "airpods 2")  # the first request to a network takes longer
        search(page, "couch pillows")
        page.locator("#after li").nth(3).locator(".why").click()
        expect(page.locator(".reasons .axis").first).to_be_visible()
        page.mouse.move(0, 0)
        page.screenshot(path=folder / "search.png")

        phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        phone.goto(address)
        search(phone, "airpods 2")
        search(phone, "red dog bowl")
        phone.locator("#query").blur()
        phone.screenshot(path=folder / "search-phone.png")

        server.kill()
        page.set_viewport_size({"width": 1200, "height": 600})
        search(page, "ugg slippers women")
        expect(page.locator("#degraded")).to_be_visible()
        page.screenshot(path=folder / "search-degraded.png")
