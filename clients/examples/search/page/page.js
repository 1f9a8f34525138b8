// Knows of no framework: the page is small.

const SHOWN = 10; // products of each order, until all are asked for
const LOOK_MS = 1000; // between two looks at whether the server is back
const BEFORE = { rank: "BM25 over titles", recommend: "popular, not bought yet" };
const NONE = { rank: "No title holds a word of this query.", recommend: "Nothing is left to recommend." };

const $ = (id) => document.getElementById(id);
let start; // what can be asked
let answer; // the latest one
let asked; // what it answers: { kind, text, endpoint }
let all = false; // whether every product is shown
let latest = 0; // number of the latest request: an answer to an earlier one is dropped
let looking; // timer, while the server is away

// ---------------------------------------------------------------- asking
async function get(path, parameters = {}) {
  let response;
  try {
    response = await fetch(`/api/${path}?${new URLSearchParams(parameters)}`);
  } catch {
    throw new Error("The page's own program does not answer. Is 'make search' still running?");
  }
  const found = await response.json().catch(() => ({ detail: response.statusText }));
  if (!response.ok) throw new Error(typeof found.detail === "string" ? found.detail : JSON.stringify(found.detail));
  return found;
}

const kind = () => document.querySelector("[name=kind]:checked").value;
const parameters = ({ kind, text, endpoint }) =>
  kind === "rank" ? { query: text, endpoint } : { customer: text, endpoint };

function chosen() {
  const text = kind() === "rank" ? $("query").value.trim() : $("customer").value;
  return { kind: kind(), text, endpoint: $("endpoint").value };
}

async function ask(request = chosen()) {
  if (!request.text) return;
  const number = ++latest;
  clearTimeout(looking);
  $("results").setAttribute("aria-busy", "true");
  try {
    const found = await get(request.kind === "rank" ? "search" : "recommend", parameters(request));
    if (number !== latest) return;
    [answer, asked, all] = [found, request, false];
    keepAddress();
    show();
  } catch (error) {
    if (number === latest) problem(error.message);
  } finally {
    if (number === latest) $("results").removeAttribute("aria-busy");
  }
}

function problem(text = "") {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function keepAddress() {
  const { kind, text, endpoint } = asked;
  history.replaceState(null, "", `?${new URLSearchParams({ kind, text, endpoint })}`);
}

async function look() {
  const back = await get("ready", { endpoint: asked.endpoint }).catch(() => false);
  if (!answer.degraded) return;
  if (back) ask(asked);
  else looking = setTimeout(look, LOOK_MS);
}

// ---------------------------------------------------------------- showing
function show() {
  problem();
  $("results").hidden = false;
  showDegraded();
  showSummary();
  showTimes();
  showOrders();
  $("request").textContent = answer.request_id && `Request ${answer.request_id}, as in the server’s log`;
}

function showDegraded() {
  const degraded = answer.degraded;
  $("degraded").hidden = !degraded;
  if (!degraded) return;
  const [words, reason] = [make("strong", "", degraded.words), make("small", "", degraded.reason)];
  const then = "It is asked again until it answers, and the list is then re-ordered by itself.";
  $("degraded").replaceChildren(words, then, reason);
  looking = setTimeout(look, LOOK_MS);
}

function showSummary() {
  const found = answer.first_stage.length;
  const moved = answer.ranked.filter((id, place) => answer.first_stage[place] !== id).length;
  const what = asked.kind === "rank" ? `for “${asked.text}”` : `for customer ${asked.text}`;
  const how = answer.degraded ? "not re-ordered" : `${moved} moved by ${answer.model}`;
  $("summary").replaceChildren(make("b", "", `${count(found, "product")} ${what}`), found ? `, ${how}.` : `. ${NONE[asked.kind]}`);
}

function showTimes() {
  const { first_stage_ms, client_ms, queue_ms, compute_ms } = answer.times;
  const parts = [
    ["first", "first stage", first_stage_ms],
    ["client", answer.degraded ? "waited for the server" : "client, network", client_ms],
    ["queue", "server queue", queue_ms],
    ["compute", "server compute", compute_ms],
  ].filter(([, , ms]) => ms !== null);
  const whole = parts.reduce((sum, [, , ms]) => sum + ms, 0);
  const bar = make("div", "bar");
  bar.append(...parts.map(([name, , ms]) => Object.assign(make("span", name), { style: `flex: ${ms / whole} 0 0` })));
  const legend = make("div", "legend");
  legend.append(...[["", "in all", whole], ...parts].map(([name, label, ms]) => {
    const entry = make("span");
    entry.append(...(name ? [make("i", name)] : []), `${label} `, make("b", "", milliseconds(ms)));
    return entry;
  }));
  $("times").replaceChildren(bar, legend);
}

function showOrders() {
  const { first_stage: before, ranked: after, degraded } = answer;
  $("before-how").textContent = BEFORE[asked.kind];
  $("after-title").firstChild.data = degraded ? "Shown " : "Re-ordered ";
  $("after-how").textContent = degraded ? "in first-stage order" : `by ${answer.model}`;
  const shown = all ? before.length : SHOWN;
  $("before").replaceChildren(...before.slice(0, shown).map((id, place) => product(id, place, wentTo(id, place))));
  $("after").replaceChildren(...after.slice(0, shown).map((id, place) => withWhy(product(id, place, cameFrom(id, place)), id)));
  $("all").hidden = before.length <= SHOWN;
  $("all").textContent = all ? `Show the first ${SHOWN}` : `Show all ${before.length}`;
  drawMoves();
}

function product(id, place, [sign, spoken, way]) {
  const row = $("product").content.firstElementChild.cloneNode(true);
  const item = answer.items[id];
  row.dataset.id = id;
  row.querySelector(".place").textContent = place + 1;
  row.querySelector(".title").textContent = item.title;
  row.querySelector(".title").title = item.title;
  row.querySelector(".about").textContent = item.about;
  const move = row.querySelector(".move");
  if (way) move.classList.add(way);
  move.children[0].textContent = sign;
  move.children[1].textContent = spoken;
  return row;
}

// [what is seen, what is read out, class]
function cameFrom(id, place) {
  if (answer.degraded) return ["", "", ""];
  if (answer.scores[place] === null) return ["no score", "the item store does not know it", ""];
  const up = answer.first_stage.indexOf(id) - place;
  if (up > 0) return [`▲ ${up}`, `up ${up}`, "up"];
  if (up < 0) return [`▼ ${-up}`, `down ${-up}`, "down"];
  return ["＝", "in the same place", ""];
}

function wentTo(id, place) {
  if (answer.degraded) return ["", "", ""];
  const now = answer.ranked.indexOf(id);
  if (now < 0) return ["left out", "left out by a filter", "down"];
  if (now === place) return ["", "stays", ""];
  return [`→ ${now + 1}`, `now ${now + 1}`, now < place ? "up" : "down"];
}

function drawMoves() {
  const svg = $("moves");
  const box = svg.getBoundingClientRect();
  const half = box.width / 2;
  const middle = (list, id) => {
    const row = list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.getBoundingClientRect();
    return row && row.top + Math.min(row.height, 70) / 2 - box.top;
  };
  const curves = answer.degraded || !box.width ? [] : answer.first_stage.map((id, before) => {
    const [left, right] = [middle($("before"), id), middle($("after"), id)];
    if (left === undefined || right === undefined) return null; // the number beside it tells
    const after = answer.ranked.indexOf(id);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M4 ${left} C${half} ${left} ${half} ${right} ${box.width - 4} ${right}`);
    path.setAttribute("class", after < 0 || after > before ? "down" : after < before ? "up" : "");
    path.dataset.id = id;
    return path;
  });
  svg.replaceChildren(...curves.filter(Boolean));
}

function light(id) {
  for (const part of document.querySelectorAll(".columns [data-id]")) part.classList.toggle("lit", part.dataset.id === id);
  $("moves").classList.toggle("lit", Boolean(id));
}

// ---------------------------------------------------------------- why
function withWhy(row, id) {
  if (answer.degraded) return row;
  const button = make("button", "why", "why");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `why: ${answer.items[id].title}`);
  button.addEventListener("click", () => (row.querySelector(".reasons") ? close(row) : open(row, id)));
  row.append(button);
  return row;
}

async function open(row, id) {
  document.querySelectorAll(".reasons").forEach((each) => close(each.parentElement));
  const reasons = make("div", "reasons");
  reasons.setAttribute("role", "status");
  reasons.append(make("p", "", "Taking the score apart; the first time takes some seconds…"));
  row.append(reasons);
  row.querySelector(".why").setAttribute("aria-expanded", "true");
  drawMoves();
  try {
    reasons.replaceChildren(...explained(await get("why", { ...parameters(asked), item: id })));
  } catch (error) {
    reasons.replaceChildren(make("p", "", error.message));
  }
  drawMoves();
}

function explained({ ranker, score, baseline, parts }) {
  const adds = parts.map((part) => part.adds);
  const [least, most] = [Math.min(0, ...adds), Math.max(0, ...adds)];
  const share = (value) => `${(value / (most - least || 1)) * 100}%`;
  const told = `Score ${number(score)} = ${number(baseline)} + what these add (${ranker}, before compression)`;
  const lines = parts.map(({ label, adds, rest }) => {
    const axis = make("span", "axis");
    axis.style.setProperty("--zero", share(-least));
    axis.append(Object.assign(make("i", [adds < 0 && "less", rest && "rest"].filter(Boolean).join(" ")), {
      style: `width: ${share(Math.abs(adds))}; left: ${share(Math.min(adds, 0) - least)}`,
    }));
    const line = make("div");
    line.append(Object.assign(make("span", "label", label), { title: label }), axis, make("span", "adds", signed(adds)));
    return line;
  });
  return [make("p", "", told), ...lines];
}

function close(row) {
  row.querySelector(".reasons")?.remove();
  row.querySelector(".why").setAttribute("aria-expanded", "false");
  drawMoves();
}

// ---------------------------------------------------------------- small things
function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

const count = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;
const milliseconds = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);
const number = (value) => value.toFixed(3).replace("-", "−");
const signed = (value) => (value < 0 ? "" : "+") + number(value);
const choice = (value, text) => Object.assign(make("option", "", text), { value });

function choose(of) {
  document.querySelector(`[name=kind][value=${of}]`).checked = true;
  const searching = of === "rank";
  $("query").hidden = !searching;
  $("examples").hidden = !searching;
  $("customer").hidden = searching;
  const there = start.endpoints.filter((endpoint) => endpoint.kind === of);
  $("endpoint").replaceChildren(...there.map(({ name, kind, model }) =>
    choice(name, name === kind ? `${name}, now ${model}` : model)));
  showBought();
}

function showBought() {
  const customer = start.customers.find(({ id }) => id === $("customer").value);
  $("bought").hidden = kind() === "rank" || !customer;
  if (customer) $("bought").textContent = `Bought last: ${customer.bought.join(" · ")}`;
}

function listen() {
  $("form").addEventListener("submit", (event) => (event.preventDefault(), ask()));
  $("endpoint").addEventListener("change", () => asked && ask());
  $("customer").addEventListener("change", () => (showBought(), ask()));
  for (const radio of document.querySelectorAll("[name=kind]"))
    radio.addEventListener("change", () => (choose(radio.value), ask()));
  $("all").addEventListener("click", () => ((all = !all), showOrders()));
  for (const event of ["pointerover", "focusin"])
    $("results").addEventListener(event, ({ target }) => light(target.closest("[data-id]")?.dataset.id));
  $("results").addEventListener("pointerleave", () => light());
  addEventListener("resize", () => answer && drawMoves());
  addEventListener("keydown", keys);
}

function keys(event) {
  const typing = event.target.matches("input[type=search], select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  }
  if (event.key !== "Escape") return;
  const row = document.querySelector(".reasons")?.parentElement;
  if (!row) return;
  close(row);
  row.querySelector(".why").focus();
}

async function begin() {
  listen();
  try {
    start = await get("start");
  } catch (error) {
    return problem(error.message);
  }
  $("note").textContent = [start.note, start.no_customers].filter(Boolean).join(" ");
  $("customer").replaceChildren(...start.customers.map(({ id, items }) => choice(id, `Customer ${id}, ${count(items, "item")} bought`)));
  document.querySelector("[name=kind][value=recommend]").disabled = !start.customers.length;
  $("examples").replaceChildren("Try ", ...start.examples.flatMap((example, place) => {
    const button = make("button", "", example);
    button.type = "button";
    button.addEventListener("click", () => (($("query").value = example), ask()));
    return place ? [" ", button] : [button];
  }));
  beginWith(new URLSearchParams(location.search));
}

// The address holds what was asked last.
function beginWith(address) {
  const of = address.get("kind") === "recommend" && start.customers.length ? "recommend" : "rank";
  choose(of);
  const text = address.get("text");
  if (!text) return;
  $(of === "rank" ? "query" : "customer").value = text;
  if (start.endpoints.some(({ name }) => name === address.get("endpoint"))) $("endpoint").value = address.get("endpoint");
  showBought();
  ask();
}

begin();
