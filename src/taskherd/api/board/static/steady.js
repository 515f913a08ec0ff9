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
 * Return whether somebody is about to use an element: it is pointed at, or it has the focus of the keyboard.
 * @param {Element | null} element
 */
export function inUse(element) {
  return element !== null && (element.matches(":hover") || element.querySelector("textarea:focus, input:focus, :focus-visible") !== null);
}

/**
 * Call a function whenever the pointer or the focus leaves an element.
 * @param {HTMLElement} element
 * @param {() => void} left
 */
export function onLeave(element, left) {
  element.addEventListener("pointerleave", left);
  element.addEventListener("focusout", () => setTimeout(left, 0));
}
