"use strict";
// Decisions of one person, an image or prompt at a time or in a grid; kept in the browser, exported
// as CSV.
const { digest, items, subject, noun } = JSON.parse(document.getElementById("data").textContent);
const place = `aigi-review-${digest}`;
const part = (id) => document.getElementById(id);
const WORDS = { keep: "Kept", drop: "Dropped", unsure: "Unsure" };
let state = { decisions: {}, history: [], at: 0 };
let grid = false;
let unveiled = false;
let kept = true; // whether the browser keeps the state

function warn(text) {
  part("warning").textContent = text;
  part("warning").hidden = false;
}

try {
  const found = localStorage.getItem(place);
  if (found !== null) state = JSON.parse(found);
} catch (error) {
  kept = false;
  warn(`This browser does not keep decisions (${error.message}): export them before you close the page.`);
}

function save() {
  if (!kept) return;
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch (error) {
    kept = false;
    warn(`This browser cannot keep more decisions (${error.message}): export them now.`);
  }
}

function written(item, large) {
  // What is hidden is not in the page: no reader of screens says it.
  const veiled = item.veil && !unveiled;
  const box = document.createElement(large ? "p" : "div");
  const text = document.createElement("bdi");
  text.textContent = veiled ? "Hidden: may be unsafe" : item.text;
  box.className = `${large ? "prompt" : "words"} ${veiled ? "veil" : ""}`;
  box.append(text);
  return box;
}

function picture(item, large) {
  if (item.picture === null) return written(item, large);
  const image = document.createElement("img");
  image.src = item.picture;
  image.width = item.shown_width;
  image.height = item.shown_height;
  const veiled = item.veil && !unveiled;
  image.alt = veiled ? "Blurred: may be unsafe" : item.text;
  const box = document.createElement(large ? "figure" : "div");
  if (veiled) box.className = "veil";
  box.append(image);
  return box;
}

function drawOne() {
  const item = items[state.at];
  part("pictures").replaceChildren(picture(item, true));
  if (item.twin !== null) {
    const box = picture(items[item.twin], true);
    const caption = document.createElement("figcaption");
    caption.textContent =
      item.similarity === null
        ? `The ${noun} that stays`
        : `The ${noun} that stays, similarity ${item.similarity}`;
    box.append(caption);
    part("pictures").append(box);
  }
  part("text").textContent = item.picture === null ? "" : item.text;
  const rows = [];
  for (const [name, value] of item.facts) {
    const term = document.createElement("dt");
    const meaning = document.createElement("dd");
    term.textContent = name;
    meaning.textContent = value;
    rows.push(term, meaning);
  }
  const term = document.createElement("dt");
  const mine = document.createElement("dd");
  const decision = state.decisions[item.id];
  term.textContent = "your decision";
  mine.textContent = decision ? WORDS[decision] : "none yet";
  mine.className = decision || "";
  part("facts").replaceChildren(...rows, term, mine);
}

function cell(item, number) {
  const button = document.createElement("button");
  const label = document.createElement("small");
  button.append(picture(item, false), label);
  button.addEventListener("click", () => move(number));
  const line = document.createElement("li");
  line.append(button);
  return line;
}

function mark(number) {
  const button = part("grid").children[number].firstChild;
  const decision = state.decisions[items[number].id];
  button.className = `${decision || ""} ${number === state.at ? "here" : ""}`;
  button.tabIndex = number === state.at ? 0 : -1;
  button.lastChild.textContent = decision ? WORDS[decision] : `now: ${items[number].reason}`;
  if (number === state.at) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

function drawGrid() {
  part("grid").replaceChildren(...items.map(cell));
  items.forEach((_, number) => mark(number));
}

function say() {
  const done = items.filter((item) => state.decisions[item.id]).length;
  part("bar").max = items.length;
  part("bar").value = done;
  part("said").textContent =
    `${noun[0].toUpperCase()}${noun.slice(1)} ${state.at + 1} of ${items.length}; ${done} decided` +
    (done === items.length ? ": all done, export them now" : "");
}

function draw() {
  part("one").hidden = grid;
  part("grid").hidden = !grid;
  part("all").setAttribute("aria-pressed", grid);
  part("show").setAttribute("aria-pressed", unveiled);
  if (grid) drawGrid();
  else drawOne();
  say();
}

function move(to) {
  const from = state.at;
  state.at = Math.min(items.length - 1, Math.max(0, to));
  save();
  if (!grid) {
    drawOne();
  } else {
    mark(from);
    mark(state.at);
    part("grid").children[state.at].firstChild.focus();
  }
  say();
}

function decide(decision) {
  const { id } = items[state.at];
  state.history.push([state.at, state.decisions[id] || null]);
  state.decisions[id] = decision;
  // On to the next one without a decision; where there is none, stay.
  let to = state.at;
  for (let step = 1; step < items.length; step += 1) {
    const next = (state.at + step) % items.length;
    if (!state.decisions[items[next].id]) {
      to = next;
      break;
    }
  }
  move(to);
}

function undo() {
  const last = state.history.pop();
  if (!last) return;
  const [number, before] = last;
  if (before === null) delete state.decisions[items[number].id];
  else state.decisions[items[number].id] = before;
  move(number);
}

function exported() {
  const lines = [`${subject},decision`];
  for (const { id } of items) {
    if (state.decisions[id]) lines.push(`${id},${state.decisions[id]}`);
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function columns() {
  return getComputedStyle(part("grid")).gridTemplateColumns.split(" ").length;
}

const actions = {
  keep: () => decide("keep"),
  drop: () => decide("drop"),
  unsure: () => decide("unsure"),
  undo,
  back: () => move(state.at - 1),
  next: () => move(state.at + 1),
  all: () => {
    grid = !grid;
    draw();
    if (grid) part("grid").children[state.at].firstChild.focus();
  },
  show: () => {
    unveiled = !unveiled;
    draw();
  },
  export: exported,
};
const keys = {
  k: "keep", d: "drop", u: "unsure", z: "undo", g: "all", s: "show", e: "export",
  ArrowLeft: "back", ArrowRight: "next",
};
for (const [id, action] of Object.entries(actions)) part(id).addEventListener("click", action);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (grid && (key === "ArrowUp" || key === "ArrowDown")) {
    move(state.at + (key === "ArrowUp" ? -columns() : columns()));
  } else if (keys[key]) {
    actions[keys[key]]();
  } else {
    return;
  }
  event.preventDefault();
});
window.addEventListener("beforeunload", (event) => {
  if (!kept && Object.keys(state.decisions).length) event.preventDefault();
});
state.at = Math.min(state.at, items.length - 1);
draw();
