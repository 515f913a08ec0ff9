// @ts-check
/** @type {import("../router.js").Page} */
export default function home(view) {
  view.setTitle("Home");
  view.shown();
  view.root.textContent = "Home";
}
