// @ts-check
// The log entries that the page keeps: a window on the conversation, so that memory stays flat however long that is.

/**
 * @typedef {{id: number, type: "input" | "output", content: string, time: string, place: number[], kind?: string,
 *   title?: string, status?: string, data?: any}} Entry
 */

export const MAX_KEPT = 600;

export class Log {
  constructor() {
    /** @type {Entry[]} in the order of their places */
    this.entries = [];
    this.older = false; // entries before these exist
    this.newer = 0; // how many after these are known to exist
    this.highest = -1; // the highest id that was kept or counted; ids are given in the order of arrival
  }

  /** The lowest id that is kept; what has a lower one is older. */
  get lowest() {
    return this.entries.reduce((lowest, each) => Math.min(lowest, each.id), Infinity);
  }

  /**
   * Begin anew, with the newest entries.
   * @param {Entry[]} entries
   * @param {boolean} older
   */
  reset(entries, older) {
    this.entries = [...entries];
    this.older = older;
    this.newer = 0;
    this.highest = highestOf(entries);
  }

  /**
   * Add entries that are new, and replace those that are known. While somebody reads further up, nothing that is shown
   * is dropped: new entries beyond the limit are only counted, each once.
   * @param {Entry[]} entries
   * @param {boolean} following whether the end is on the screen
   * @param {boolean} gap whether entries before these are missing, so that none can stand below those that are kept
   */
  apply(entries, following, gap = false) {
    const known = new Map(this.entries.map((each) => [each.id, each]));
    const { lowest } = this;
    for (const entry of [...entries].sort((one, other) => one.id - other.id)) {
      const kept = known.get(entry.id);
      const isNew = entry.id > this.highest;
      if (kept && compare(kept, entry) === 0) this.entries[this.entries.indexOf(kept)] = entry;
      else if (kept) this.move(entry);
      else if (entry.id < lowest && this.older) continue; // read with the other older ones
      else if (gap || this.newer || (!following && this.entries.length >= MAX_KEPT)) this.newer += Number(isNew);
      else this.insert(entry);
      if (isNew) this.highest = entry.id;
    }
    if (following && this.entries.length > MAX_KEPT) {
      this.entries.splice(0, this.entries.length - MAX_KEPT);
      this.older = true;
    }
  }

  /**
   * Add entries that are older than all; the newest are dropped beyond the limit.
   * @param {Entry[]} entries
   */
  prepend(entries) {
    const known = new Set(this.entries.map((each) => each.id));
    for (const entry of entries) if (!known.has(entry.id)) this.insert(entry);
    this.highest = Math.max(this.highest, highestOf(entries));
    this.older = entries.length > 0 && Math.min(...entries.map((each) => each.id)) > 0;
    const excess = this.entries.length - MAX_KEPT;
    if (excess > 0) this.newer += this.entries.splice(MAX_KEPT, excess).length;
  }

  /** @param {Entry} entry one that came with an earlier place than it had */
  move(entry) {
    this.entries = this.entries.filter((each) => each.id !== entry.id);
    this.insert(entry);
  }

  /** @param {Entry} entry */
  insert(entry) {
    let at = this.entries.length;
    while (at > 0 && compare(this.entries[at - 1], entry) > 0) at -= 1;
    this.entries.splice(at, 0, entry);
  }
}

/** @param {Entry[]} entries */
function highestOf(entries) {
  return entries.reduce((highest, each) => Math.max(highest, each.id), -1);
}

/**
 * @param {Entry} one
 * @param {Entry} other
 */
export function compare(one, other) {
  for (let index = 0; index < one.place.length; index += 1) {
    const difference = one.place[index] - other.place[index];
    if (difference) return difference;
  }
  return 0;
}
