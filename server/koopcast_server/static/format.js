// Numbers and times for people. Undefined measures arrive as null and are shown as a dash.

const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (value) => (value === null ? NONE : value.toLocaleString("en"));

export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

export function short(value) {
  if (value === null) return NONE;
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) return `${Number((value / (unit === "k" ? 1e3 : size)).toPrecision(3))} ${unit}`;
  }
  return count(value);
}

// Time constants span from a part of a step to millions of them.
export const rounded = (value) =>
  value !== null && value < 100 ? String(Number(value.toPrecision(2))) : short(value && Math.round(value));

export function percent(share) {
  if (share === null) return NONE;
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

// A share from 0 to 1 that is a score, not a part of something.
export const share = (value) => (value === null ? NONE : value.toFixed(2));

// 10 to this power, as a label of an axis.
export const power = (exponent) => (Math.abs(exponent) > 3 ? `1e${exponent}` : String(Number(`1e${exponent}`)));

export const held = ({ snapshots_held: snapshots, operator: { window } }) =>
  window === "segment" ? count(snapshots) : `${snapshots} of ${window}`;

export function bytes(value) {
  let power = 0;
  while (value >= 1024 && power < UNITS.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${power ? value.toFixed(1) : value} ${UNITS[power]}`;
}

export function measure(value) {
  if (value === null) return NONE;
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e4 ? value.toExponential(1) : value.toPrecision(3);
}

export function seconds(value) {
  if (value === null) return NONE;
  if (value < 1) return `${Number((value * 1000).toPrecision(2))} ms`;
  return value < 60 ? `${value.toPrecision(2)} s` : `${Math.round(value / 60)} min`;
}

export function ago(time) {
  if (time === null) return "never";
  const passed = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (passed < 60) return `${Math.floor(passed)} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  return passed < 86400 ? `${Math.floor(passed / 3600)} h ago` : `${Math.floor(passed / 86400)} d ago`;
}

// Complex eigenvalues of real operators come in conjugate pairs; one entry stands for both, with their energy together.
export function pairs(modes) {
  const partner = ({ real, imaginary }) =>
    imaginary ? modes.find((other) => other.real === real && other.imaginary === -imaginary) : undefined;
  return modes
    .map((mode) => [mode, partner(mode)])
    .filter(([mode, other]) => other === undefined || mode.imaginary > 0)
    .map(([mode, other]) => {
      if (other === undefined) return mode;
      const energy = mode.energy === null || other.energy === null ? null : mode.energy + other.energy;
      return { ...mode, energy, pair: true };
    });
}

export function complex({ real, imaginary, pair = false }) {
  if (real === null || imaginary === null) return NONE;
  if (imaginary === 0) return real.toFixed(4);
  const sign = pair ? "±" : imaginary < 0 ? "−" : "+";
  return `${real.toFixed(4)} ${sign} ${Math.abs(imaginary).toFixed(4)}i`;
}
