// @ts-check
// The banner that says that the page is not up to date. It comes when a feed stays away, and goes by itself.
const AFTER = 1_500; // milliseconds a feed may be away before the banner comes

let timer = 0;

/**
 * The `onState` of a page's feed.
 * @param {import("./feed.js").FeedState} state
 */
export function showFeedState(state) {
  clearTimeout(timer);
  const banner = document.getElementById("offline");
  if (!banner) return;
  if (state === "offline") timer = setTimeout(() => (banner.hidden = false), AFTER);
  else if (state === "live" || state === "ended") banner.hidden = true;
}
