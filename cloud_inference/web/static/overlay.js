// Boxes, trails, labels, zones and lines over a picture, in source pixels.

const PALETTE = ["#5ad1ff", "#ffb454", "#a7e35a", "#ff7eb6", "#b79bff", "#ffd84d", "#4fe0b5", "#ff8a65"];
const known = new Map();

/** A class keeps its colour. */
export function colour(name) {
  if (!known.has(name)) {
    let sum = 0;
    for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) >>> 0;
    known.set(name, PALETTE[name === "person" ? 0 : name === "car" ? 1 : sum % PALETTE.length]);
  }
  return known.get(name);
}

export class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.last = null;
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(canvas);
  }

  close() { this.sized.disconnect(); }

  /** answer: null for none. source: width and height. trails: by track. drawing: masks, zones, lines. */
  show(answer, source, trails, drawing) {
    this.last = { answer, source, trails, drawing };
    this.draw();
  }

  /** The same answer with other shapes. */
  redraw(drawing) {
    this.last = { answer: null, source: [0, 0], ...this.last, drawing };
    this.draw();
  }

  draw() {
    const { canvas, context, last } = this;
    const { width, height } = canvas.getBoundingClientRect();
    const dense = Math.min(window.devicePixelRatio || 1, 2);
    const [w, h] = [Math.round(width * dense), Math.round(height * dense)];
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    else context.clearRect(0, 0, w, h);
    if (!last || !w) return;
    context.setTransform(dense, 0, 0, dense, 0, 0);
    const scale = [width / last.source[0], height / last.source[1]];
    if (last.drawing) shapes(context, last.drawing, [width, height]);
    if (last.answer && last.source[0] && last.answer.provenance !== "degraded") {
      for (const box of last.answer.boxes) trail(context, last.trails?.get(box[5]), scale, colour(box[6]));
      for (const box of last.answer.boxes) outline(context, box, scale);
      if (width >= 220) labels(context, last.answer.boxes, scale, width);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
  }
}

function outline(context, [x1, y1, x2, y2, , , name], [sx, sy]) {
  const rectangle = [x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy];
  context.lineJoin = "round";
  context.strokeStyle = "rgb(0 0 0 / .55)";
  context.lineWidth = 3.5;
  context.strokeRect(...rectangle);
  context.strokeStyle = colour(name);
  context.lineWidth = 1.75;
  context.strokeRect(...rectangle);
}

function trail(context, points, [sx, sy], ink) {
  if (!points || points.length < 2) return;
  context.lineWidth = 2;
  context.lineCap = "round";
  context.strokeStyle = ink;
  for (let at = 1; at < points.length; at += 1) {
    context.globalAlpha = 0.08 + 0.62 * (at / points.length);
    context.beginPath();
    context.moveTo(points[at - 1][0] * sx, points[at - 1][1] * sy);
    context.lineTo(points[at][0] * sx, points[at][1] * sy);
    context.stroke();
  }
  context.globalAlpha = 1;
}

function labels(context, boxes, [sx, sy], width) {
  context.font = "600 11px ui-sans-serif, system-ui, sans-serif";
  context.textBaseline = "middle";
  const taken = [];
  // The surest first: one that would lie over another is left out, its box stays.
  for (const [x1, y1, , y2, score, track, name] of [...boxes].sort((a, b) => b[4] - a[4])) {
    const words = `${name}${track ? ` ${track}` : ""}${width > 480 ? ` · ${Math.round(score * 100)}` : ""}`;
    const long = context.measureText(words).width + 10;
    const left = Math.min(Math.max(x1 * sx - 1, 1), Math.max(1, width - long - 1));
    const top = y1 * sy > 18 ? y1 * sy - 17 : Math.min(y2 * sy + 2, y1 * sy + 2);
    if (taken.some(([l, t, w]) => left < l + w + 2 && l < left + long + 2 && Math.abs(t - top) < 16)) continue;
    taken.push([left, top, long]);
    context.fillStyle = "rgb(8 11 16 / .82)";
    context.beginPath();
    context.roundRect(left, top, long, 15, 3);
    context.fill();
    context.fillStyle = colour(name);
    context.fillText(words, left + 5, top + 8);
  }
}

export const INKS = { masks: "#e6e9ef", zones: "#4fe0b5", lines: "#ffd84d" };

/** A path through points that are fractions of the picture. */
export function path(context, points, [width, height], closed) {
  context.beginPath();
  points.forEach(([x, y], at) => context[at ? "lineTo" : "moveTo"](x * width, y * height));
  if (closed) context.closePath();
}

function shapes(context, drawing, size) {
  context.lineJoin = "round";
  for (const kind of ["masks", "zones", "lines"]) {
    for (const shape of drawing[kind] || []) {
      path(context, shape.points, size, kind !== "lines");
      if (kind !== "lines") {
        context.fillStyle = kind === "masks" ? "rgb(4 6 9 / .55)" : "rgb(79 224 181 / .10)";
        context.fill();
      }
      context.setLineDash(kind === "masks" ? [5, 4] : []);
      context.strokeStyle = "rgb(0 0 0 / .5)";
      context.lineWidth = 3.5;
      context.stroke();
      context.strokeStyle = INKS[kind];
      context.lineWidth = 1.5;
      context.stroke();
      context.setLineDash([]);
      if (kind === "lines") arrow(context, shape.points, size);
    }
  }
}

/** Which way is forwards: from the line's left to its right. */
export function arrow(context, [[x1, y1], [x2, y2]], [width, height]) {
  const [ax, ay, bx, by] = [x1 * width, y1 * height, x2 * width, y2 * height];
  const long = Math.hypot(bx - ax, by - ay);
  if (long < 12) return;
  const [dx, dy] = [(bx - ax) / long, (by - ay) / long];
  const [nx, ny] = [-dy, dx];
  const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
  context.strokeStyle = INKS.lines;
  context.lineWidth = 1.75;
  context.beginPath();
  context.moveTo(mx, my);
  context.lineTo(mx + nx * 16, my + ny * 16);
  context.moveTo(mx + nx * 16 - (nx + dx) * 5, my + ny * 16 - (ny + dy) * 5);
  context.lineTo(mx + nx * 16, my + ny * 16);
  context.lineTo(mx + nx * 16 - (nx - dx) * 5, my + ny * 16 - (ny - dy) * 5);
  context.stroke();
}
