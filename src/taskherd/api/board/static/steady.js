// @ts-check
// Lists that do not move under the pointer: while somebody points at one, or the focus is in it, its rows stay.

/** What a list shows: some of it may be over already, some of it is held back until the pointer leaves. */
export class SteadyList {
  constructor() {
    /** @type {string[]} */
    this.ids = [];
    this.heldBack = 0;
  }

  /**
   * Return the ids to show, of those that belong in the list now.
   * @param {string[]} wanted in their order
   * @param {boolean} held whether the rows must stay
   */
  update(wanted, held) {
    if (!held || !this.ids.length) {
      this.ids = wanted;
      this.heldBack = 0;
    } else {
      const shown = new Set(this.ids);
      this.heldBack = wanted.filter((id) => !shown.has(id)).length;
    }
    return this.ids;
  }
}

/**
 * Return the rows that belong in lists now, and of those that are known the ones that lists still show, by their ids.
 * @template T
 * @param {Map<string, T>} known
 * @param {Map<string, T>} current
 * @param {SteadyList[]} lists
 */
export function keepRows(known, current, lists) {
  const shown = lists.flatMap(({ ids }) => ids).filter((id) => known.has(id));
  return new Map([...shown.map((id) => /** @type {[string, T]} */ ([id, known.get(id)])), ...current]);
}

const TOUCH = matchMedia("(hover: none) and (pointer: coarse)"); // where what was tapped last stays :hover
const TOUCH_HOLDS = 2_000; // milliseconds after a touch in which nothing may move: a second tap would hit what has come there
/** @type {EventTarget[]} what was touched last, and all that it is in */
let touched = [];
let touchedAt = 0;
document.addEventListener("pointerdown", (event) => {
  touched = event.composedPath();
  touchedAt = event.timeStamp;
}, { capture: true });

/** The field that somebody writes in: it keeps the focus of the document while another window has that of the person. */
function field() {
  return document.activeElement instanceof HTMLTextAreaElement ? document.activeElement : null;
}

/**
 * Return whether somebody writes in a field of the row with this id.
 * @param {string} id
 */
export function isWrittenIn(id) {
  return field()?.closest("[data-id]")?.getAttribute("data-id") === id;
}

/**
 * Return whether somebody points at an element, or touched it just now.
 * @param {Element | null} element
 */
export function isPointedAt(element) {
  if (element === null) return false;
  if (!TOUCH.matches) return element.matches(":hover");
  return touched.includes(element) && performance.now() - touchedAt < TOUCH_HOLDS;
}

/**
 * Return whether somebody is about to use an element: it is pointed at, was touched just now, or has the focus of the keyboard.
 * @param {Element | null} element
 */
export function inUse(element) {
  if (element === null) return false;
  if (isPointedAt(element) || element.contains(field())) return true;
  const focused = TOUCH.matches ? ":focus-visible:not(.over)" : ":focus-visible"; // after a touch, a row that is over keeps the focus
  return element.querySelector(`input:focus, ${focused}`) !== null;
}

/**
 * Call a function whenever the pointer, a finger or the focus leaves an element.
 * @param {HTMLElement} element
 * @param {() => void} left
 */
export function onLeave(element, left) {
  element.addEventListener("pointerleave", leaves(left));
  element.addEventListener("focusout", () => setTimeout(left, 0));
}

/**
 * The `pointerleave` listener of an element: a finger that is lifted leaves it a while later.
 * @param {() => void} left
 * @returns {(event: PointerEvent) => void}
 */
export function leaves(left) {
  return ({ pointerType }) => void setTimeout(left, pointerType === "touch" ? TOUCH_HOLDS : 0);
}
