// A maze on a canvas, as the package's videos draw it: positions are flat, row * width + column.

const FLOOR = "#f6f4ee", FLOOR_LINE = "#e4e0d6", WALL = "#3a4254", WALL_EDGE = "#262c3a", FOG = "#181b24", FOG_MARK = "#2a2f3d";
const DOOR = "#f08022", DOOR_SHADE = "#b0520c", DOOR_OPEN = "#facc96", GOAL = "#26a66a", AGENT = "#2c68de", TRAIL = "#6ca0f6";
const ARROW = "#d62876", CHANGE = "122, 75, 196", NEAR = "15, 138, 138", PATH = "#188a54";
export const Cell = { EMPTY: "0", WALL: "1", DOOR: "2", AGENT: "3", GOAL: "4", UNKNOWN: "5" };
const MOVES = [[-1, 0], [0, 1], [1, 0], [0, -1]]; // N, E, S, W
const TRAIL_MEMORY = 30;
const HIDDEN = 0.6; // of the outer wall, on every side
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Board {
  // actions: {edge(position, open), goal(position), agent(position)}, called for what a person does to the map.
  constructor(canvas, actions) {
    this.canvas = canvas;
    this.actions = actions;
    this.maze = this.seat = this.drag = this.hover = null;
    this.from = null; // where the agent is being drawn, between two positions
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => this.drop());
    canvas.addEventListener("pointerleave", () => { this.hover = null; this.draw(); });
    // A finger that begins on a piece drags it, elsewhere it scrolls the page.
    canvas.addEventListener("touchstart", (event) => { if (this.drag) event.preventDefault(); }, { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(maze, seat, view) {
    const before = this.seat;
    Object.assign(this, { maze, seat, view });
    const steps = before && seat.steps === before.steps + 1 && seat.changed === before.changed;
    const near = before && Math.abs(row(maze, seat.at) - row(maze, before.at)) + Math.abs(col(maze, seat.at) - col(maze, before.at)) === 1;
    if (steps && near && !calm.matches) this.glide(before.at, Math.min(130, 0.6 * view.interval));
    else { this.from = null; this.draw(); }
  }

  glide(from, duration) {
    const began = performance.now(), token = (this.gliding = {});
    const frame = (now) => {
      if (token !== this.gliding) return;
      const share = Math.min(1, Math.max(0, (now - began) / duration));
      this.from = share < 1 ? { at: from, share: share * (2 - share) } : null;
      this.draw();
      if (share < 1) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  // What a person does.

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const shown = (length) => length - 2 * HIDDEN;
    return {
      y: HIDDEN + ((event.clientY - box.top) / box.height) * shown(this.maze.height),
      x: HIDDEN + ((event.clientX - box.left) / box.width) * shown(this.maze.width),
    };
  }

  press(event) {
    if (!this.seat || event.button) return;
    const at = this.point(event), over = this.seat.outcome !== null;
    const reach = event.pointerType === "touch" ? 0.8 : 0.55;
    this.pressed = at;
    for (const [what, place] of [["agent", this.seat.at], ["goal", this.seat.goal]]) {
      if (!over && this.isSeen(place) && distance(this.maze, at, place) < reach) this.drag = { what, from: place, at };
    }
    if (this.drag) try { this.canvas.setPointerCapture(event.pointerId); } catch { /* the pointer is gone */ }
  }

  move(event) {
    if (!this.seat) return;
    const at = this.point(event);
    if (this.drag) this.drag.at = at;
    else this.hover = event.pointerType === "mouse" ? this.edgeAt(at) : null;
    const piece = [this.seat.at, this.seat.goal].some((place) => this.isSeen(place) && distance(this.maze, at, place) < 0.55);
    this.canvas.style.cursor = this.seat.outcome !== null ? "default" : this.drag ? "grabbing" : piece ? "grab" : this.hover !== null ? "pointer" : "default";
    this.draw();
  }

  release(event) {
    if (!this.seat || !this.pressed) return;
    const at = this.point(event), drag = this.drag, moved = Math.hypot(at.y - this.pressed.y, at.x - this.pressed.x);
    this.drop();
    if (drag) {
      const target = this.target(drag);
      if (target !== null && target !== drag.from) this.actions[drag.what](target);
    } else if (moved < 0.6) {
      const edge = this.edgeAt(at);
      if (edge !== null) this.actions.edge(edge, !isOpen(this.seat.map, edge));
    }
  }

  drop() {
    this.drag = this.pressed = null;
    this.draw();
  }

  // Whether fog, or a memory test, hides from a person what is there.
  isSeen(place) {
    return this.view.whole || (this.seat.seen[place] !== Cell.UNKNOWN && (place !== this.seat.goal || this.seat.seen[place] === Cell.GOAL));
  }

  edgeAt(at) {
    const { maze, seat } = this;
    if (seat.outcome !== null) return null;
    const near = maze.edges.filter((edge) => distance(maze, at, edge) < 0.75 && edge !== seat.at && edge !== seat.goal && this.isSeen(edge));
    return near.length ? near.reduce((a, b) => (distance(maze, at, b) < distance(maze, at, a) ? b : a)) : null;
  }

  target(drag) {
    const { maze, seat } = this;
    const places = drag.what === "goal" ? maze.cells : [...seat.map].map((_, place) => place);
    const other = drag.what === "goal" ? seat.at : seat.goal;
    const free = places.filter((place) => place !== other && isOpen(seat.map, place) && distance(maze, drag.at, place) < 1.5);
    return free.length ? free.reduce((a, b) => (distance(maze, drag.at, b) < distance(maze, drag.at, a) ? b : a)) : null;
  }

  // Drawing, in units of a grid position.

  draw() {
    const { canvas, maze, seat, view } = this;
    if (!maze || !canvas.clientWidth) return;
    const scale = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * scale), unit = width / (maze.width - 2 * HIDDEN);
    const height = Math.round(unit * (maze.height - 2 * HIDDEN));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.setTransform(unit, 0, 0, unit, -HIDDEN * unit, -HIDDEN * unit);
    const grid = view.whole ? seat.map : seat.seen;
    this.ground(pen, grid);
    this.heat(pen, grid);
    for (const door of seat.doors) if (grid[door] === Cell.EMPTY) this.door(pen, grid, door, false);
    this.trail(pen);
    if (view.path) this.path(pen);
    this.numbers(pen, grid);
    for (let place = 0; place < grid.length; place++) if (grid[place] === Cell.DOOR) this.door(pen, grid, place, true);
    if (this.hover !== null && !this.drag) this.outline(pen, this.hover);
    const goal = grid.indexOf(Cell.GOAL);
    const pieces = { goal: goal < 0 ? null : goal, agent: seat.at };
    if (pieces.goal !== null) this.goal(pen, ...this.centre("goal", pieces.goal));
    const [y, x] = this.centre("agent", pieces.agent);
    if (seat.thought && seat.outcome === null && !this.drag) this.arrows(pen, y, x);
    this.agent(pen, y, x);
  }

  centre(what, place) {
    if (this.drag?.what === what) {
      const target = this.target(this.drag);
      if (target !== null) this.outline(this.canvas.getContext("2d"), target);
      return [this.drag.at.y, this.drag.at.x];
    }
    const [y, x] = [row(this.maze, place) + 0.5, col(this.maze, place) + 0.5];
    if (what === "goal" || !this.from) return [y, x];
    const { at, share } = this.from;
    return [y + (row(this.maze, at) + 0.5 - y) * (1 - share), x + (col(this.maze, at) + 0.5 - x) * (1 - share)];
  }

  ground(pen, grid) {
    const { width, height } = this.maze, line = 0.04, overlap = 0.012;
    pen.fillStyle = FLOOR;
    pen.fillRect(0, 0, width, height);
    const solid = (r, c) => r < 0 || c < 0 || r >= height || c >= width || grid[r * width + c] === Cell.WALL || grid[r * width + c] === Cell.UNKNOWN;
    const rectangles = (colour, rows) => { // in one path, which has no seams
      pen.fillStyle = colour;
      pen.beginPath();
      for (const rectangle of rows) pen.rect(...rectangle);
      pen.fill();
    };
    const places = [...grid].map((kind, place) => [kind, Math.floor(place / width), place % width]);
    const open = places.filter(([kind]) => kind !== Cell.WALL && kind !== Cell.UNKNOWN);
    rectangles(FLOOR_LINE, open.flatMap(([, r, c]) => [[c, r, 1, line], [c, r, line, 1]]));
    for (const [cell, colour] of [[Cell.UNKNOWN, FOG], [Cell.WALL, WALL]]) {
      const own = places.filter(([kind]) => kind === cell);
      rectangles(colour, own.map(([, r, c]) => [c - overlap, r - overlap, 1 + 2 * overlap, 1 + 2 * overlap]));
    }
    for (let r = 0; r < height; r++) {
      for (let c = 0; c < width; c++) {
        const kind = grid[r * width + c];
        if (kind === Cell.UNKNOWN) disc(pen, r + 0.5, c + 0.5, 0.06, FOG_MARK);
        if (kind !== Cell.WALL) continue;
        pen.fillStyle = WALL_EDGE;
        if (!solid(r - 1, c)) pen.fillRect(c, r, 1, 0.07);
        if (!solid(r + 1, c)) pen.fillRect(c, r + 0.93, 1, 0.07);
        if (!solid(r, c - 1)) pen.fillRect(c, r, 0.07, 1);
        if (!solid(r, c + 1)) pen.fillRect(c + 0.93, r, 0.07, 1);
      }
    }
  }

  // What each token's cells hold, and how strong that is: of the shown segment the largest change, or the shortest distance.
  heatOf() {
    const thought = this.seat.thought, near = this.view.heat === "distance";
    const rows = thought && this.view.heat !== "none" ? (near ? thought.distance : thought.cells) : null;
    if (!rows?.length || !rows[0].length) return null;
    const values = rows[this.view.segment(rows.length)], most = Math.max(...values, 1e-9);
    return { near, values, most };
  }

  heat(pen, grid) {
    const heat = this.heatOf();
    if (!heat) return;
    this.maze.tokens.forEach((places, token) => {
      const share = Math.max(0, Math.min(1, heat.values[token] / heat.most));
      pen.fillStyle = heat.near ? `rgba(${NEAR}, ${0.7 * (1 - share) ** 1.5})` : `rgba(${CHANGE}, ${0.78 * share ** 1.3})`;
      for (const place of places) {
        if (grid[place] !== Cell.WALL && grid[place] !== Cell.UNKNOWN) pen.fillRect(col(this.maze, place), row(this.maze, place), 1, 1);
      }
    });
  }

  numbers(pen, grid) {
    const heat = this.heatOf();
    if (!heat?.near) return;
    const size = Math.min(0.36, 15 / (this.canvas.clientWidth / (this.maze.width - 2 * HIDDEN))); // 15 pixels at most
    Object.assign(pen, { font: `600 ${size}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle", lineWidth: size / 2.5, lineJoin: "round" });
    pen.strokeStyle = "rgba(246, 244, 238, .8)";
    pen.fillStyle = "#1d3a40";
    this.maze.tokens.forEach(([place], token) => {
      if (place === undefined || grid[place] === Cell.UNKNOWN || grid[place] === Cell.WALL || grid[place] === Cell.DOOR) return;
      const spot = [String(Math.round(heat.values[token])), col(this.maze, place) + 0.5, row(this.maze, place) + 0.52];
      pen.strokeText(...spot);
      pen.fillText(...spot);
    });
  }

  door(pen, grid, place, closed) {
    const { width } = this.maze, r = row(this.maze, place), c = col(this.maze, place);
    const beside = [grid[place - 1], grid[place + 1]];
    const across = beside.every((kind) => kind === Cell.WALL || kind === Cell.UNKNOWN || kind === Cell.DOOR) && c > 0 && c < width - 1;
    pen.save();
    pen.translate(c + 0.5, r + 0.5);
    if (!across) pen.rotate(Math.PI / 2);
    if (closed) {
      rounded(pen, -0.5, -0.26, 1, 0.52, 0.08, DOOR_SHADE);
      rounded(pen, -0.45, -0.2, 0.9, 0.4, 0.08, DOOR);
      disc(pen, 0, 0.26, 0.07, "rgba(255, 255, 255, .9)");
    } else {
      for (const left of [-0.5, 0.3]) rounded(pen, left, -0.2, 0.2, 0.4, 0.05, DOOR_OPEN);
    }
    pen.restore();
  }

  trail(pen) {
    const trail = this.seat.trail;
    pen.lineCap = "round";
    for (let age = Math.min(trail.length - 1, 60); age > 0; age--) {
      const [start, end] = [trail[trail.length - age - 1], trail[trail.length - age]];
      if (start === end) continue;
      const fresh = Math.max(1 - (age - 1) / TRAIL_MEMORY, 0);
      pen.globalAlpha = 0.22 + 0.6 * fresh;
      pen.strokeStyle = TRAIL;
      pen.lineWidth = 2 * (0.06 + 0.08 * fresh);
      polyline(pen, this.maze, [start, end]);
    }
    pen.globalAlpha = 1;
  }

  path(pen) {
    const path = this.seat.path;
    if (path.length < 2) return;
    pen.strokeStyle = PATH;
    pen.lineWidth = 0.13;
    pen.lineJoin = "round";
    pen.setLineDash([0.02, 0.3]);
    polyline(pen, this.maze, path);
    pen.setLineDash([]);
  }

  outline(pen, place) {
    pen.strokeStyle = "rgba(214, 40, 118, .9)";
    pen.lineWidth = 0.06;
    pen.setLineDash([0.14, 0.1]);
    pen.strokeRect(col(this.maze, place) + 0.06, row(this.maze, place) + 0.06, 0.88, 0.88);
    pen.setLineDash([]);
  }

  goal(pen, y, x) {
    disc(pen, y, x, 0.42, "rgba(38, 166, 106, .25)");
    for (const [radius, colour] of [[0.34, GOAL], [0.22, "#fff"], [0.12, GOAL]]) disc(pen, y, x, radius, colour);
  }

  arrows(pen, y, x) {
    const { probabilities } = this.seat.thought;
    if (!probabilities.length || probabilities[0].length !== 4) return;
    probabilities[this.view.segment(probabilities.length)].forEach((probability, k) => {
      if (probability < 0.01) return;
      const [down, right] = MOVES[k], base = 0.4, tip = 0.46 + 0.84 * probability, half = 0.16 + 0.14 * probability;
      pen.globalAlpha = 0.55 + 0.4 * probability;
      pen.fillStyle = ARROW;
      pen.beginPath();
      pen.moveTo(x + right * tip, y + down * tip);
      pen.lineTo(x + right * base + down * half, y + down * base + right * half);
      pen.lineTo(x + right * base - down * half, y + down * base - right * half);
      pen.fill();
    });
    pen.globalAlpha = 1;
  }

  agent(pen, y, x) {
    disc(pen, y, x, 0.42, "rgba(255, 255, 255, .95)");
    disc(pen, y, x, 0.36, AGENT);
    disc(pen, y - 0.11, x - 0.11, 0.1, "rgba(255, 255, 255, .55)");
  }
}

const row = (maze, place) => Math.floor(place / maze.width);
const col = (maze, place) => place % maze.width;
const isOpen = (grid, place) => grid[place] !== Cell.WALL && grid[place] !== Cell.DOOR;
const distance = (maze, at, place) => Math.hypot(at.y - row(maze, place) - 0.5, at.x - col(maze, place) - 0.5);

function disc(pen, y, x, radius, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

function rounded(pen, x, y, width, height, corner, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.roundRect(x, y, width, height, corner);
  pen.fill();
}

function polyline(pen, maze, places) {
  pen.beginPath();
  places.forEach((place, i) => pen[i ? "lineTo" : "moveTo"](col(maze, place) + 0.5, row(maze, place) + 0.5));
  pen.stroke();
}
