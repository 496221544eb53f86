// Numbers for people.

export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (Math.abs(count) >= 999.5 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

export const rate = (perSecond) => (Number.isFinite(perSecond) ? `${bytes(perSecond)}/s` : "–");

export function duration(ms) {
  if (!Number.isFinite(ms)) return "–";
  const s = Math.max(0, ms) / 1000;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} days`;
}

export function delay(ms) {
  if (!Number.isFinite(ms)) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export const fps = (value) => (Number.isFinite(value) ? (value >= 10 ? value.toFixed(0) : value.toFixed(1)) : "–");

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

export function clock(ms) {
  if (!ms) return "–";
  const when = new Date(ms);
  const today = when.toDateString() === new Date().toDateString();
  return today ? CLOCK.format(when) : `${DAY.format(when)} ${CLOCK.format(when)}`;
}

export const count = (value) => new Intl.NumberFormat().format(value);

/** `spool_full` as a person reads it. */
export const words = (reason) => (reason || "").replaceAll("_", " ");

export const PROVENANCE = { cloud: "Cloud", edge: "Edge", propagated: "Filled in", degraded: "No answer" };

/** Plural by number: `counted(2, "camera")`. */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
