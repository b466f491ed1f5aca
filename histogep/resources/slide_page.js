// The page of a slide: values become colours, and the menu chooses which. Names given by users are
// shown as text only (textContent, and the tooltips of Bokeh, which escape).
"use strict";
(function () {
  const NONE = 65535;
  const UNKNOWN = "#00000000";
  const byId = (id) => document.getElementById(id);
  const content = JSON.parse(byId("content").textContent);
  const item = JSON.parse(byId("item").textContent);
  const n = content.places.length;

  function unpack(text) {
    const bytes = atob(text);
    const whole = new Uint16Array(bytes.length / 2);
    for (let i = 0; i < whole.length; i++) {
      whole[i] = bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1);
    }
    return whole;
  }

  function written(value) {
    return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  }

  function numbers(part) {
    const whole = unpack(part.data);
    return Array.from(whole, (v) => (v === NONE ? NaN : part.low + v * part.step));
  }

  function fill(select) {
    const groups = new Map();
    content.layers.forEach((layer, number) => {
      if (!groups.has(layer.group)) {
        const group = document.createElement("optgroup");
        group.label = layer.group;
        groups.set(layer.group, select.appendChild(group));
      }
      const option = document.createElement("option");
      option.value = String(number);
      option.textContent = layer.name;
      groups.get(layer.group).appendChild(option);
      const name = document.createElement("option");
      name.value = layer.name;
      byId("names").appendChild(name);
    });
  }

  function start() {
    const sheet = Bokeh.documents[0];
    const model = (kind, map) => sheet.get_model_by_name(`${kind}-${map}`);
    const layerOf = () => content.layers[Number(byId("layer").value)];

    function ends(layer, map) {
      if (byId("shared").checked || layer.fixed || !layer.own[map]) {
        return [Number(byId("low").value), Number(byId("high").value)];
      }
      return layer.own[map];
    }

    function draw() {
      const layer = layerOf();
      const about = layer.about.map(([name, text]) => `${name}: ${text}`).join("; ") || "–";
      content.maps.forEach((title, map) => {
        const colour = new Array(n).fill(UNKNOWN);
        const value = new Array(n).fill("no value");
        const interval = new Array(n).fill("–");
        const scale = model("scale", map);
        const bar = model("bar", map);
        const drawn = model("drawn", map);
        let has = false;
        if (layer.names) {
          bar.visible = false;
          if (layer.codes[map]) {
            has = true;
            unpack(layer.codes[map]).forEach((code, i) => {
              if (code !== NONE) {
                colour[i] = layer.colours[code];
                value[i] = layer.names[code];
              }
            });
          }
        } else if (layer.parts[map]) {
          has = true;
          const palette = content.palettes[layer.palette];
          const [low, high] = ends(layer, map);
          const predicted = map === content.maps.length - 1;
          numbers(layer.parts[map]).forEach((v, i) => {
            if (Number.isNaN(v)) return;
            const place = Math.floor((256 * (v - low)) / (high - low));
            colour[i] = palette[Math.min(255, Math.max(0, place))];
            value[i] = `${written(v)} ${layer.unit}`;
            if (layer.half !== null && predicted) {
              const least = layer.half <= v || v < 0 ? v - layer.half : 0;
              interval[i] = `${written(least)} to ${written(v + layer.half)}`;
            }
          });
          scale.setv({ palette: palette, low: low, high: high });
          bar.visible = true;
        } else {
          bar.visible = false;
        }
        const unit = layer.unit ? ` (${layer.unit})` : "";
        model("map", map).title.text = has
          ? `${title}${unit}`
          : `${title}: nothing of ${layer.name}`;
        const places = model("places", map);
        places.data = {
          ...places.data,
          colour: colour,
          place: content.places,
          layer: new Array(n).fill(layer.name),
          value: value,
          interval: interval,
          about: new Array(n).fill(about),
        };
        drawn.glyph.fill_alpha = { value: Number(byId("opacity").value) };
        model("image", map).glyph.global_alpha = { value: Number(byId("brightness").value) };
      });
      describe(layer);
      document.body.dataset.layer = layer.name;
    }

    function describe(layer) {
      const about = byId("about");
      about.replaceChildren();
      const name = document.createElement("b");
      name.textContent = layer.name;
      about.append(name, ...layer.about.map(([what, text]) => ` · ${what}: ${text}`));
      const legend = byId("legend");
      legend.replaceChildren();
      (layer.names || []).forEach((entry, number) => {
        const counts = layer.codes.map((codes) =>
          codes ? unpack(codes).filter((code) => code === number).length : 0
        );
        const line = document.createElement("span");
        const swatch = document.createElement("i");
        swatch.style.background = layer.colours[number];
        line.append(swatch, `${entry} (${Math.max(...counts)})`);
        legend.append(line);
      });
    }

    function reset() {
      const layer = layerOf();
      const numeric = !layer.names;
      for (const id of ["low", "high", "reset", "shared"]) byId(id).disabled = !numeric;
      if (numeric) {
        byId("low").value = written(layer.limits[0]);
        byId("high").value = written(layer.limits[1]);
      }
      draw();
    }

    byId("layer").addEventListener("change", reset);
    byId("reset").addEventListener("click", () => {
      byId("shared").checked = true;
      reset();
    });
    byId("search").addEventListener("change", () => {
      const wanted = byId("search").value.toLowerCase();
      const found = content.layers.findIndex((layer) => layer.name.toLowerCase() === wanted);
      if (found >= 0) {
        byId("layer").value = String(found);
        reset();
      }
    });
    for (const id of ["opacity", "brightness", "shared"]) byId(id).addEventListener("input", draw);
    for (const id of ["low", "high"]) {
      byId(id).addEventListener("change", () => {
        byId("shared").checked = true;
        if (Number(byId("high").value) > Number(byId("low").value)) draw();
      });
    }
    if (content.maps.length < 2) byId("shared-label").hidden = true;
    reset();
    document.body.dataset.ready = "yes";
  }

  fill(byId("layer"));
  Bokeh.embed.embed_item(item, "maps").then(start);
})();
