// The metres under the pointer, from the picture of millimetres that `Shown.pointer_picture` makes.
() => {
  let source = null, map = null;
  const pixelsOf = (image) => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  };
  document.addEventListener("mousemove", (event) => {
    const picture = event.target.closest?.("#depth")?.querySelector("img");
    const millimetres = document.querySelector("#metres img");
    const readout = document.querySelector("#pointer");
    if (!picture || !readout || !millimetres?.complete || !millimetres.naturalWidth) return;
    if (source !== millimetres.src) {
      map = pixelsOf(millimetres);
      source = millimetres.src;
    }
    const box = picture.getBoundingClientRect();
    const scale = Math.min(box.width / picture.naturalWidth, box.height / picture.naturalHeight);
    const left = box.left + (box.width - scale * picture.naturalWidth) / 2;
    const top = box.top + (box.height - scale * picture.naturalHeight) / 2;
    // Rounded as Gradio rounds a click, so that both say the same pixel.
    const x = Math.round((event.clientX - left) / scale);
    const y = Math.round((event.clientY - top) / scale);
    const step = Number(millimetres.dataset.step);
    const column = Math.floor(x / step), row = Math.floor(y / step);
    if (column < 0 || row < 0 || column >= map.width || row >= map.height) return;
    const [red, green, blue] = map.data.slice(4 * (row * map.width + column));
    const value = red * 65536 + green * 256 + blue;
    readout.textContent = `(${x}, ${y}): ${value ? (value / 1000).toFixed(3) + " m" : "no depth"}`;
  });
}
