// @ts-check
// The lines that differ between two texts, with a few around them. Bounded: two texts that differ in many lines are
// shown one after the other.

const MAX_CELLS = 400_000; // of the table of the longest common subsequence
const CONTEXT = 3; // unchanged lines around a change

/** @typedef {{sign: " " | "+" | "-" | "…", text: string}} Line a `…` stands for unchanged lines; its text is their number */

/**
 * @param {string} before
 * @param {string} after
 * @returns {{lines: Line[], added: number, removed: number}}
 */
export function diff(before, after) {
  const [old, fresh] = [split(before), split(after)];
  let start = 0;
  while (start < old.length && start < fresh.length && old[start] === fresh[start]) start += 1;
  let end = 0;
  while (end < old.length - start && end < fresh.length - start && old.at(-1 - end) === fresh.at(-1 - end)) end += 1;
  const middle = changes(old.slice(start, old.length - end), fresh.slice(start, fresh.length - end));
  /** @type {Line[]} */
  const all = [...same(old.slice(0, start)), ...middle, ...same(old.slice(old.length - end))];
  return {
    lines: fold(all),
    added: middle.filter((each) => each.sign === "+").length,
    removed: middle.filter((each) => each.sign === "-").length,
  };
}

/** @param {string} text */
function split(text) {
  if (!text) return [];
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return lines;
}

/**
 * @param {string[]} lines
 * @returns {Line[]}
 */
function same(lines) {
  return lines.map((text) => ({ sign: " ", text }));
}

/**
 * @param {string[]} old
 * @param {string[]} fresh
 * @returns {Line[]}
 */
function changes(old, fresh) {
  /** @type {Line[]} */
  const lines = [];
  const remove = (/** @type {string} */ text) => lines.push({ sign: "-", text });
  const add = (/** @type {string} */ text) => lines.push({ sign: "+", text });
  const width = fresh.length + 1;
  if ((old.length + 1) * width > MAX_CELLS) {
    old.forEach(remove);
    fresh.forEach(add);
    return lines;
  }
  const longest = new Uint32Array((old.length + 1) * width); // of the rest of both texts, from each pair of lines on
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = fresh.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] = old[i] === fresh[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  let [i, j] = [0, 0];
  while (i < old.length || j < fresh.length) {
    if (i < old.length && j < fresh.length && old[i] === fresh[j]) {
      lines.push({ sign: " ", text: old[i] });
      i += 1;
      j += 1;
    } else if (i < old.length && (j === fresh.length || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      remove(old[i]);
      i += 1;
    } else {
      add(fresh[j]);
      j += 1;
    }
  }
  return lines;
}

/**
 * Leave out unchanged lines that are not near a change.
 * @param {Line[]} lines
 * @returns {Line[]}
 */
function fold(lines) {
  const near = new Uint8Array(lines.length);
  lines.forEach((line, index) => {
    if (line.sign === " ") return;
    near.fill(1, Math.max(0, index - CONTEXT), index + CONTEXT + 1);
  });
  /** @type {Line[]} */
  const shown = [];
  let skipped = 0;
  const flush = () => {
    if (skipped) shown.push({ sign: "…", text: String(skipped) });
    skipped = 0;
  };
  lines.forEach((line, index) => {
    if (!near[index]) {
      skipped += 1;
      return;
    }
    flush();
    shown.push(line);
  });
  flush();
  return shown;
}
