// The page: asks the server for one thing at a time, and draws the state that it answers with.

import { Board } from "./board.js";
import { drawThought, nameOf, short } from "./thought.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") ?? "";
const RATES = [1, 2, 4, 8, 16, 30]; // decisions a second
const NAMES = { agent: "agent", other: "second agent", you: "you" };
const OUTCOMES = { arrived: "arrived", "out of time": "out of time", ended: "ended" };
const ARROWS = { ArrowUp: 0, ArrowRight: 1, ArrowDown: 2, ArrowLeft: 3 };
const PAD = [null, 0, null, 3, null, 1, null, 2, null]; // actions N E S W on a field of 3 by 3

let state = null;
let chain = Promise.resolve(); // requests are answered in order
let playing = null; // a timer, or true while a step is being computed
let chosen = null; // the segment that is shown on the map; null: the last one
let noticeTimer = 0;
const cards = new Map();

const view = {
  heat: "change",
  path: false,
  whole: false,
  get interval() { return 1000 / RATES[$("speed").value]; },
  segment: (count) => (chosen === null || chosen >= count ? count - 1 : chosen),
};

// Asking.

function ask(command) {
  const answer = chain.then(() => request(command));
  chain = answer.catch(() => {});
  return answer;
}

async function request(command) {
  let response, content;
  try {
    response = await fetch("api", {
      method: "POST",
      headers: { "content-type": "application/json", "x-token": token },
      body: JSON.stringify(command),
    });
    content = await response.json();
  } catch {
    pause();
    notify("The server does not answer; has it been ended?", true);
    return null;
  }
  if (!response.ok) {
    pause();
    notify(content.error, true);
    return null;
  }
  if (content.refused) notify(content.refused);
  state = content;
  draw();
  return content;
}

function notify(message, bad = false) {
  const box = $("notice");
  box.textContent = message;
  box.classList.toggle("bad", bad);
  box.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (box.hidden = true), bad ? 12_000 : 3_000);
}

// Playing.

const agents = () => state.seats.filter((seat) => seat.settings);
const isOver = () => agents().every((seat) => seat.outcome !== null);
const isWaiting = () => state.seats.some((seat) => seat.name === "you" && seat.outcome === null && seat.steps > 0);

async function step() {
  if (!state) return;
  if (isOver()) return void notify("The episode is over: begin it again (R), or the next level (N).");
  await ask({ do: "step" });
}

function play() {
  if (!state || playing) return;
  playing = true;
  $("play").textContent = "Pause";
  tick();
}

function pause() {
  clearTimeout(playing);
  playing = null;
  $("play").textContent = "Play";
}

async function tick() {
  if (!playing) return;
  const began = performance.now();
  let wait = view.interval;
  if (!isOver()) await ask({ do: "step" });
  else if (!isWaiting()) await ask({ do: "level", number: state.level + 1 });
  if (!playing) return;
  if (isOver()) wait = Math.max(wait, 1100);
  playing = setTimeout(tick, Math.max(0, wait - (performance.now() - began)));
}

async function move(action) {
  if (!state || action >= state.about.actions) return;
  if (!state.seats.some((seat) => seat.name === "you")) await seats({ you: true });
  const own = state?.seats.find((seat) => seat.name === "you");
  if (!own) return;
  if (own.outcome !== null) return void notify("Your episode is over: begin it again (R), or the next level (N).");
  await ask({ do: "move", action });
}

function seats(change) {
  const now = { other: $("compare").checked, you: $("you").checked, ...change };
  return ask({ do: "seats", ...now });
}

const begin = (number) => state && ask({ do: "level", number: Math.max(0, Math.min(1e9, number)) });

// Drawing.

function draw() {
  const { about, maze } = state;
  $("agent").textContent = about.agent || "HRM-Agent";
  $("about").textContent = `${about.env} · trained with carry ${about.trained.carry}, K = ${about.trained.segments}`;
  document.title = `${about.agent}: watch it think`;
  if (document.activeElement !== $("level")) $("level").value = state.level;
  $("previous").disabled = state.level === 0;
  $("compare").checked = state.seats.some((seat) => seat.name === "other");
  $("you").checked = state.seats.some((seat) => seat.name === "you");
  $("you").parentElement.hidden = !about.actions;
  $("path").parentElement.hidden = !maze;
  $("whole-label").hidden = !maze?.fog;
  $("heat").hidden = !maze?.tokens.length;
  const withProbe = $("heat").querySelector("[data-heat=distance]");
  withProbe.hidden = !about.has_probe;
  for (const button of $("heat").children) button.setAttribute("aria-checked", button.dataset.heat === view.heat);
  $("help").hidden = $("own").hidden = !maze;
  $("seats").className = state.seats.length === 1 ? "one" : "";
  for (const [name, card] of cards) {
    if (state.seats.some((seat) => seat.name === name)) continue;
    card.root.remove();
    cards.delete(name);
  }
  for (const seat of state.seats) {
    if (!cards.has(seat.name)) cards.set(seat.name, makeCard(seat.name));
    const card = cards.get(seat.name);
    if ($("seats").children[state.seats.indexOf(seat)] !== card.root) $("seats").insertBefore(card.root, $("seats").children[state.seats.indexOf(seat)] ?? null);
    drawCard(card, seat);
  }
  drawResults();
}

function makeCard(name) {
  const root = $("seat").content.firstElementChild.cloneNode(true);
  const find = (selector) => root.querySelector(selector);
  const card = { root, find };
  root.dataset.seat = name;
  card.board = new Board(find("canvas"), {
    edge: (position, open) => ask({ do: "edge", position, open }),
    goal: (position) => ask({ do: "goal", position }),
    agent: (position) => ask({ do: "agent", position }),
  });
  const [slider, carry, sampled] = [find(".segments input"), find(".carry"), find(".sampled")];
  slider.addEventListener("input", () => (find(".segments output").value = slider.value));
  slider.addEventListener("change", () => ask({ do: "settings", seat: name, segments: Number(slider.value) }));
  carry.addEventListener("change", () => { carry.blur(); ask({ do: "settings", seat: name, carry: carry.value }); });
  sampled.addEventListener("change", () => { sampled.blur(); ask({ do: "settings", seat: name, sampled: sampled.value === "sampled" }); });
  return card;
}

function drawCard(card, seat) {
  const { about, maze } = state, { find } = card;
  find("h2").textContent = NAMES[seat.name] + (seat.settings ? ` · carry ${seat.settings.carry}, K = ${seat.settings.segments}` : "");
  find(".outcome").textContent = seat.outcome ? OUTCOMES[seat.outcome] : "";
  find(".outcome").className = `outcome ${seat.outcome === "arrived" ? "arrived" : seat.outcome ? "failed" : ""}`;
  find("canvas").hidden = !maze;
  find("img").hidden = !seat.picture;
  if (maze) card.board.show(maze, seat, view);
  else if (seat.picture) find("img").src = seat.picture;
  find("canvas").setAttribute("aria-label", `maze of ${NAMES[seat.name]}`);
  drawLegend(find(".legend"), card, seat);
  find(".numbers").replaceChildren(...numbers(seat));
  drawThought(find(".thought"), seat, view, choose);
  drawSettings(card, seat);
  const pad = find(".pad");
  pad.hidden = seat.name !== "you";
  if (!pad.hidden && !pad.children.length) pad.replaceChildren(...padButtons(pad, about.actions, Boolean(maze)));
}

function drawSettings({ find }, seat) {
  find(".settings").hidden = !seat.settings;
  if (!seat.settings) return;
  const [slider, carry, sampled] = [find(".segments input"), find(".carry"), find(".sampled")];
  slider.max = state.about.most_segments;
  if (document.activeElement !== slider) slider.value = seat.settings.segments;
  find(".segments output").value = slider.value;
  if (carry.options.length !== state.about.carries.length) carry.replaceChildren(...state.about.carries.map((rule) => new Option(rule, rule)));
  carry.value = seat.settings.carry;
  sampled.value = seat.settings.sampled ? "sampled" : "greedy";
  sampled.disabled = !state.about.can_sample;
}

function drawLegend(legend, card, seat) {
  const heat = state.maze ? card.board.heatOf() : null;
  legend.hidden = !heat;
  if (!heat) return;
  const segment = view.segment(seat.thought.change.length) + 1;
  legend.classList.toggle("distance", heat.near);
  legend.querySelector(".low").textContent = "0";
  legend.querySelector(".high").textContent = heat.near ? `${Math.round(heat.most)} steps` : short(heat.most);
  legend.querySelector(".what").textContent = heat.near ? `distance to the goal, read after segment ${segment}` : `latent change in segment ${segment}`;
}

function numbers(seat) {
  const { about } = state;
  const shown = [["steps", seat.steps, about.limit ? `/ ${about.limit}` : ""]];
  if ("regret" in seat) {
    shown.push(["regret", seat.regret, seat.last_regret ? `+${seat.last_regret} now` : ""]);
    if (seat.outcome === null) shown.push(["shortest way now", seat.shortest < 0 ? "none" : seat.shortest, ""]);
    if (seat.steps === 0 && !seat.changed && state.maze.earliest >= 0) shown.push(["earliest possible", state.maze.earliest, ""]);
    if (seat.changed) shown.push(["changes of yours", seat.changed, ""]);
  } else shown.push(["return", short(seat.return), ""]);
  return shown.map(([name, value, more]) => {
    const box = document.createElement("div"), title = document.createElement("dt"), text = document.createElement("dd"), small = document.createElement("small");
    title.textContent = name;
    small.textContent = more && ` ${more}`;
    text.append(String(value), small);
    box.append(title, text);
    return box;
  });
}

function padButtons(pad, actions, isMaze) {
  const places = isMaze ? PAD : Array.from({ length: actions }, (_, action) => action);
  pad.classList.toggle("row", !isMaze);
  return places.map((action) => {
    if (action === null) return document.createElement("span");
    const button = document.createElement("button");
    button.textContent = isMaze ? "↑→↓←"[action] : nameOf(action, 0);
    button.setAttribute("aria-label", isMaze ? `move ${"NESW"[action]}` : `action ${action}`);
    button.addEventListener("click", () => move(action));
    return button;
  });
}

function drawResults() {
  const { scores } = state;
  $("results").hidden = !scores.length;
  const names = Object.keys(NAMES).filter((name) => scores.some((score) => score[name]));
  $("results").querySelector("thead").replaceChildren(line("th", ["level", ...names.map((name) => NAMES[name])]));
  const lines = scores.slice(-12).reverse().map((score) => {
    const made = line("td", [String(score.level), ...names.map((name) => result(score[name]))]);
    names.forEach((name, i) => score[name] && made.children[i + 1].classList.add(score[name].success ? "yes" : "no"));
    return made;
  });
  $("results").querySelector("tbody").replaceChildren(...lines);
}

function result(score) {
  if (!score) return "";
  const parts = [`${score.steps} steps`];
  if ("regret" in score) parts.push(`regret ${score.regret}`);
  else parts.push(`return ${short(score.return)}`);
  if (score.changed) parts.push("disturbed");
  return parts.join(", ");
}

function line(kind, texts) {
  const made = document.createElement("tr");
  made.append(...texts.map((content) => Object.assign(document.createElement(kind), { textContent: content })));
  return made;
}

function choose(segment, count) {
  chosen = segment === count - 1 ? null : segment;
  draw();
}

// What a person presses.

$("play").addEventListener("click", () => (playing ? pause() : play()));
$("step").addEventListener("click", () => { pause(); step(); });
$("reset").addEventListener("click", () => state && begin(state.level));
$("next").addEventListener("click", () => state && begin(state.level + 1));
$("previous").addEventListener("click", () => state && begin(state.level - 1));
$("level").addEventListener("change", () => { $("level").blur(); begin(Math.trunc(Number($("level").value) || 0)); });
$("speed").addEventListener("input", () => ($("rate").value = `${RATES[$("speed").value]}/s`));
$("path").addEventListener("change", () => { view.path = $("path").checked; if (state) draw(); });
$("whole").addEventListener("change", () => { view.whole = $("whole").checked; if (state) draw(); });
$("compare").addEventListener("change", () => seats({}));
$("you").addEventListener("change", () => seats({}));
$("heat").addEventListener("click", (event) => {
  const heat = event.target.closest("[data-heat]")?.dataset.heat;
  if (heat && state) { view.heat = heat; draw(); }
});

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((key === " " || key === "Enter") && event.target.closest("button, input")) return; // reached by the tab key: it is pressed
  if (key in ARROWS && state.maze) move(ARROWS[key]);
  else if (/^\d$/.test(key) && !state.maze) move(Number(key));
  else if (key === " ") { pause(); step(); }
  else if (key === "p" && !event.repeat) playing ? pause() : play();
  else if (key === "r") begin(state.level);
  else if (key === "n") begin(state.level + 1);
  else return;
  event.preventDefault();
});
// What was clicked does not keep the keys to itself.
document.addEventListener("click", (event) => event.detail && event.target.closest("button, input[type=checkbox]")?.blur());
document.addEventListener("pointerup", (event) => event.target.closest("input[type=range]")?.blur());
addEventListener("resize", () => state && draw());

ask({ do: "look" });
