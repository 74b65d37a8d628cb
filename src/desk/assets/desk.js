// Reads the part of the page that shows what waits again when the server says that it changed. Without this script the page works the
// same; it is read again by hand.
"use strict";
const live = document.getElementById("live");
if (live && window.EventSource) {
  const changes = new EventSource(live.dataset.changes);
  let reading = false, again = false;
  const read = async () => {
    if (reading) { again = true; return; }
    reading = true;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (answer.ok && !answer.redirected) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const next = page.getElementById("live");
        if (next) live.replaceChildren(...next.childNodes);
        const state = document.querySelector(".state"), nextState = page.querySelector(".state");
        if (state && nextState) state.replaceWith(nextState);
        // A decision that is no longer possible must not look as if it were.
        const decide = document.getElementById("decide");
        if (decide && !page.getElementById("decide")) decide.remove();
      }
    } finally {
      reading = false;
      if (again) { again = false; read(); }
    }
  };
  changes.addEventListener("changed", read);
}
