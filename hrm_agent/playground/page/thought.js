// A decision, segment by segment: a column for each, with the probability of every action, the change of the latent and
// the value.

const NAMES = ["N", "E", "S", "W"];
const ROW = 26, LEFT = 62, RIGHT = 50, TOP = 21, MOST_ROWS = 9;

export function drawThought(box, seat, view, onChoose) {
  const thought = seat.thought;
  box.classList.toggle("old", seat.outcome !== null);
  if (!thought) return void box.replaceChildren();
  const count = thought.change.length, actions = thought.probabilities[0].length, rows = Math.min(actions, MOST_ROWS);
  const width = Math.max(260, Math.min(620, Math.round(box.clientWidth) || 340));
  const column = Math.min(58, (width - LEFT - RIGHT) / count), end = LEFT + column * count + 8;
  const svg = make("svg", { role: "img", "aria-label": "the policy after every segment" });
  const chosen = view.segment(count);
  const last = thought.probabilities[count - 1];
  let y = TOP;
  const bars = Array.from({ length: count }, () => []);
  for (let action = 0; action < rows; action++, y += ROW) {
    svg.append(text(nameOf(action, actions), 0, y + ROW - 9, "label"));
    thought.probabilities.forEach((policy, i) => {
      const best = policy[action] === Math.max(...policy);
      bars[i].push(...bar(i, y, policy[action], best ? "p best" : "p"));
    });
    const now = thought.probabilities[chosen][action];
    svg.append(text(`${Math.round(100 * now)}%`, end, y + ROW - 9, thought.action === action ? "now" : ""));
  }
  if (thought.action_text) svg.append(text(`action ${thought.action_text}`, 0, y + 14, "now")), (y += 22);
  y += 8;
  const most = Math.max(...thought.change, 1e-9);
  svg.append(text("change", 0, y + ROW - 9, "label"), text(short(thought.change[chosen]), end, y + ROW - 9));
  thought.change.forEach((change, i) => bars[i].push(...bar(i, y, change / most, "c")));
  y += ROW + 4;
  svg.append(text("value", 0, y + ROW - 9, "label"), text(short(thought.values[chosen]), end, y + ROW - 9));
  const values = valueLine(thought.values, y);
  y += ROW + 2;
  bars.forEach((parts, i) => {
    const group = make("g", { class: i === chosen ? "segment chosen" : "segment", "data-policy": (thought.probabilities[i] ?? []).join(" ") });
    const label = text(String(i + 1), LEFT + column * (i + 0.5), 14);
    label.setAttribute("text-anchor", "middle");
    const hit = make("rect", { class: "hit", x: LEFT + column * i, y: 0, width: column, height: y, rx: 4 });
    group.append(hit, label, ...parts, make("title", {}, `segment ${i + 1}`));
    group.addEventListener("click", () => onChoose(i, count));
    svg.append(group);
  });
  svg.append(...values);
  svg.setAttribute("viewBox", `0 0 ${width} ${y}`);
  box.replaceChildren(svg);

  function bar(i, top, share, kind) {
    const gap = Math.min(4, column * 0.14), full = ROW - 5, height = Math.max(share > 0.004 ? 1 : 0, full * Math.min(1, share));
    const x = LEFT + column * i + gap, wide = column - 2 * gap;
    return [
      make("rect", { class: "track", x, y: top + 2, width: wide, height: full, rx: 2 }),
      make("rect", { class: kind, x, y: top + 2 + full - height, width: wide, height, rx: Math.min(2, height / 2) }),
    ];
  }

  function valueLine(values, top) {
    const low = Math.min(...values, 0), high = Math.max(...values, 1), place = (v) => top + 3 + (ROW - 7) * (1 - (v - low) / (high - low));
    const points = values.map((value, i) => [LEFT + column * (i + 0.5), place(value ?? 0)]);
    return [
      make("polyline", { class: "v", points: points.map((p) => p.join(",")).join(" "), "pointer-events": "none" }),
      ...points.map(([cx, cy]) => make("circle", { class: "dot", cx, cy, r: 2.6, "pointer-events": "none" })),
    ];
  }
}

export function nameOf(action, actions) {
  return actions === 4 ? `${NAMES[action]} ${"↑→↓←"[action]}` : String(action);
}

export function short(value) {
  return value === null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2);
}

function make(name, attributes, content) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (content) element.textContent = content;
  return element;
}

function text(content, x, y, kind = "") {
  return make("text", { x, y, class: kind }, content);
}
