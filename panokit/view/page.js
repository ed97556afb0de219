"use strict";
// The glue between the data of the page and its viewers. What comes from files is set as text alone, and never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("pictures");

/** An element with properties, and with elements and texts in it. */
function make(name, properties = {}, ...content) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...content);
  return element;
}

/** The address of a picture: of its bytes in the page, of its file, or of the small version of a file that no browser shows. */
function addressOf(picture) {
  const script = document.getElementById(`picture-${data.pictures.indexOf(picture)}`);
  if (!script) return picture.url || picture.thumbnail;
  const bytes = Uint8Array.from(atob(script.textContent), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: script.type.split(";")[0] }));
}

/** A viewer for a flat picture, which is endless where its borders join. */
function flat(box, picture, failed) {
  const viewer = OpenSeadragon({
    element: box,
    drawer: "canvas",
    tileSources: picture.tiles || { type: "image", url: addressOf(picture) },
    wrapHorizontal: picture.wrap[0],
    wrapVertical: picture.wrap[1],
    showNavigationControl: false,
    visibilityRatio: 0.3,
    minZoomImageRatio: 0.5,
    maxZoomPixelRatio: 8,
    animationTime: 0.5,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  viewer.addHandler("open-failed", failed);
  viewer.addHandler("tile-load-failed", failed);
  return {
    viewer,
    zoom: (factor) => viewer.viewport.zoomBy(factor),
    home: () => viewer.viewport.goHome(),
    close: () => viewer.destroy(),
  };
}

/** A viewer for an equirectangular picture, from inside the sphere. */
function sphere(box, picture, failed) {
  const home = { hfov: Math.min(100, picture.sphere.haov), pitch: picture.sphere.vOffset, yaw: 0 };
  const viewer = pannellum.viewer(box, {
    type: "equirectangular",
    panorama: addressOf(picture),
    ...picture.sphere,
    ...home,
    minHfov: 5,
    autoLoad: true,
    ignoreGPanoXMP: true, // the angles are known already, for PNG too
    showControls: false,
  });
  viewer.on("error", failed);
  new ResizeObserver(() => viewer.resize()).observe(box);
  return {
    viewer,
    zoom: (factor) => viewer.setHfov(viewer.getHfov() / factor, 300),
    home: () => viewer.lookAt(home.pitch, home.yaw, home.hfov, 300),
    close: () => viewer.destroy(),
  };
}

/** A player for a film. A film as WebP is a picture that moves by itself. */
function film(box, picture, failed) {
  const address = addressOf(picture);
  const player =
    picture.film === "video"
      ? make("video", { src: address, controls: true, loop: Boolean(picture.loop), muted: true, autoplay: true, playsInline: true })
      : make("img", { src: address, alt: "" });
  player.addEventListener("error", failed);
  box.classList.add("film");
  box.append(player);
  let scale = 1;
  const zoomTo = (value) => {
    scale = Math.min(8, Math.max(1, value));
    player.style.width = player.style.height = `${100 * scale}%`;
  };
  return { viewer: player, zoom: (factor) => zoomTo(scale * factor), home: () => zoomTo(1), close: () => player.remove() };
}

/** The viewer for a picture. */
function kindOf(picture) {
  return picture.film ? film : picture.sphere ? sphere : flat;
}

/** Let films play together: all follow the one under the pointer, or the one that has the keyboard. */
function playTogether(players) {
  const films = players.filter((player) => player.play);
  for (const leader of films) {
    const others = films.filter((player) => player !== leader);
    const on = (what, action) => leader.addEventListener(what, () => leader.matches(":hover, :focus") && others.forEach(action));
    on("play", (player) => player.play());
    on("pause", (player) => leader.ended || player.pause());
    on("ratechange", (player) => (player.playbackRate = leader.playbackRate));
    on("seeking", (player) => (player.currentTime = leader.currentTime));
  }
}

/** Let flat viewers show the same place: whoever moves takes the others along. */
function moveFlatTogether(viewers) {
  let moving = false;
  const follow = (leader, event) => {
    if (moving) return;
    moving = true;
    for (const viewer of viewers) {
      if (viewer === leader || !viewer.isOpen()) continue;
      viewer.viewport.zoomTo(leader.viewport.getZoom(false), null, event.immediately);
      viewer.viewport.panTo(leader.viewport.getCenter(false), event.immediately);
    }
    moving = false;
  };
  for (const viewer of viewers) for (const what of ["pan", "zoom"]) viewer.addHandler(what, (event) => follow(viewer, event));
}

/** Let viewers of spheres look the same way: all follow the one that was touched last. */
function moveSpheresTogether(viewers) {
  let leader = viewers[0];
  for (const viewer of viewers) {
    for (const what of ["pointerdown", "wheel", "keydown"]) {
      viewer.getContainer().addEventListener(what, () => (leader = viewer), { capture: true, passive: true });
    }
  }
  const follow = () => {
    if (!main.isConnected) return;
    const view = [leader.getPitch(), leader.getYaw(), leader.getHfov()];
    for (const viewer of viewers) {
      const own = [viewer.getPitch(), viewer.getYaw(), viewer.getHfov()];
      if (viewer !== leader && viewer.isLoaded() && own.some((angle, k) => angle !== view[k])) viewer.lookAt(...view, false);
    }
    requestAnimationFrame(follow);
  };
  follow();
}

/** Copy a text; where a browser forbids it, select the text instead. */
async function copy(text, button, shown) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(shown);
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy command"), 2000);
}

/** The recipes in a table: a row for each setting, a column for each picture. Rows that differ come first. */
function table(pictures) {
  const rows = pictures.map((picture) => new Map(picture.rows));
  const names = [...new Set(rows.flatMap((row) => [...row.keys()]))];
  const head = make("tr", {}, make("th"), ...pictures.map((picture) => make("th", { textContent: picture.name })));
  const differs = (name) => new Set(rows.map((row) => row.get(name))).size > 1;
  const ordered = [...names.filter(differs), ...names.filter((name) => !differs(name))];
  const body = ordered.map((name) => {
    const texts = rows.map((row) => make("td", { textContent: row.get(name) ?? "" }));
    return make("tr", { className: differs(name) ? "differs" : "" }, make("th", { textContent: name }), ...texts);
  });
  const commands = pictures.map((picture) => {
    if (!picture.command) return make("td");
    const text = make("code", { className: "command", textContent: picture.command });
    const button = make("button", { className: "copy", textContent: "Copy command" });
    button.onclick = () => copy(picture.command, button, text);
    const careful = "This command loads files, models or classes by name. If the picture is not yours, read it before you run it.";
    const lacks = "FILE stands for a picture that the recipe does not hold: write the name of its file there.";
    const notes = [...(picture.foreign ? [careful] : []), ...(picture.lacks ? [lacks] : [])];
    return make("td", {}, button, ...notes.map((note) => make("p", { className: "careful", textContent: note })), text);
  });
  if (pictures.some((picture) => picture.command)) body.splice(2, 0, make("tr", {}, make("th", { textContent: "Make it again" }), ...commands));
  if (pictures.some((picture) => picture.note)) {
    body.unshift(make("tr", {}, make("th", { textContent: "Note" }), ...pictures.map((picture) => make("td", { textContent: picture.note || "" }))));
  }
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

/** The slider of two pictures that lie on each other, and the button that lays them so. */
function slider(show, views) {
  const range = make("input", { type: "range", className: "slider", min: 0, max: 100, step: 0.1, value: 50, ariaLabel: "Where the pictures meet" });
  const edge = make("div", { className: "edge" });
  const button = make("button", { id: "over", textContent: "Slider" });
  range.oninput = () => views.style.setProperty("--at", `${range.value}%`);
  button.onclick = () => {
    const over = show.classList.toggle("over");
    button.setAttribute("aria-pressed", over);
    range.hidden = edge.hidden = !over;
  };
  button.setAttribute("aria-pressed", "false");
  range.hidden = edge.hidden = true;
  range.oninput();
  views.append(edge, range);
  return button;
}

/** Show pictures in an element, with their recipes, and the buttons for them in another one. Returns what closes them. */
function present(pictures, place, tools) {
  const views = make("div", { className: "views" });
  const recipes = make("div", { className: "recipes", hidden: data.form === "cell" }, table(pictures));
  const show = make("section", { className: pictures.length > 1 ? "show several" : "show" }, views, recipes);
  place.append(show);
  const wide = pictures.every((picture) => picture.size[0] >= 1.5 * picture.size[1]);
  const columns = wide ? 1 : Math.ceil(Math.sqrt(pictures.length));
  views.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  const viewers = pictures.map((picture) => {
    const box = make("div", { className: "box" });
    const view = make("div", { className: "view" }, box);
    if (pictures.length > 1) view.append(make("div", { className: "name", textContent: picture.name }));
    views.append(view);
    const fault = make("p", { className: "fault", textContent: `This browser cannot show ${picture.name}.` });
    return kindOf(picture)(box, picture, () => view.append(fault));
  });
  const ofKind = (kind) => viewers.filter((_, k) => kindOf(pictures[k]) === kind).map(({ viewer }) => viewer);
  if (ofKind(flat).length > 1) moveFlatTogether(ofKind(flat));
  if (ofKind(sphere).length > 1) moveSpheresTogether(ofKind(sphere));
  playTogether(ofKind(film));
  const button = (textContent, title, onclick) => make("button", { textContent, title, ariaLabel: title, onclick });
  const leads = (picture, k) => kindOf(picture) === film || pictures.findIndex((other) => kindOf(other) === kindOf(picture)) === k;
  const leaders = pictures.map(leads);
  const zoom = (factor) => viewers.forEach((viewer, k) => leaders[k] && viewer.zoom(factor));
  tools.append(
    button("+", "Zoom in", () => zoom(1.5)),
    button("\u2212", "Zoom out", () => zoom(1 / 1.5)),
    button("Whole picture", "Show the whole picture", () => viewers.forEach((viewer, k) => leaders[k] && viewer.home())),
    button("Full screen", "Fill the screen", () => (document.fullscreenElement ? document.exitFullscreen() : show.requestFullscreen())),
    button("Recipe", "Show or hide the recipe", () => (recipes.hidden = !recipes.hidden)),
  );
  if (pictures.length === 2) tools.append(slider(show, views));
  return { viewers, close: () => viewers.forEach((viewer) => viewer.close()) };
}

/** A gallery: small pictures, which are drawn when they come into sight, and open when they are clicked. */
function gallery(pictures) {
  const cards = pictures.map((picture) => {
    const image = picture.thumbnail
      ? make("img", { loading: "lazy", decoding: "async", alt: "", src: picture.thumbnail })
      : make("video", { preload: "metadata", muted: true, src: picture.url });
    const card = make("button", { className: "card", title: picture.name }, image, make("span", { textContent: picture.name }));
    card.onclick = () => {
      const tools = make("header");
      const dialog = make("dialog", {}, tools);
      document.body.append(dialog);
      dialog.showModal();
      const shown = present([picture], dialog, tools);
      tools.append(make("button", { textContent: "Close", onclick: () => dialog.close() }));
      dialog.onclose = () => {
        shown.close();
        dialog.remove();
      };
    };
    return card;
  });
  main.replaceWith(make("main", { className: "cards" }, ...cards));
  document.getElementById("tools").append(make("span", { textContent: pictures.length === 1 ? "1 picture" : `${pictures.length} pictures` }));
}

for (const problem of data.problems) document.getElementById("problems").append(make("p", { textContent: problem }));
if (data.form === "gallery") gallery(data.pictures);
else window.shown = present(data.pictures, main, document.getElementById("tools"));
