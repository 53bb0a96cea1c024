// Players of page.py. One video holds all tiles of a clip; each canvas shows its part of the frame, so nothing can drift
// apart, and a page of fifty tiles needs six decoders. Marks in the plots (`plots.CLOCK`, `plots.PATH`) follow the clock.
const numbers = element => element.querySelector('path').getAttribute('d').match(/-?[\d.]+/g).map(Number);
const is_still = matchMedia('(prefers-reduced-motion: reduce)').matches;
document.querySelectorAll('.player').forEach(player => {
  const video = player.querySelector('video'), tiles = [...player.querySelectorAll('canvas')];
  const [button, range, time] = ['button', 'input', 'output'].map(name => player.querySelector(name));
  const clocks = [...player.querySelectorAll('[id*="-clock"]')].map(mark => {
    const [left, , right] = numbers(mark.parentNode.querySelector('[id*="-span"]'));
    return share => mark.setAttribute('transform', `translate(${share * (right - left)} 0)`);
  });
  const paths = [...player.querySelectorAll('[id*="-path"]')].map(path => {
    const xy = numbers(path), last = xy.length / 2 - 1, dot = path.querySelector('path').cloneNode();
    const colour = path.querySelector('path').style.stroke;
    dot.removeAttribute('clip-path');
    dot.setAttribute('style', `fill: ${colour}; stroke: var(--paper); stroke-width: 1.5`);
    dot.setAttribute('d', 'M -4 0 a 4 4 0 1 0 8 0 a 4 4 0 1 0 -8 0');
    path.parentNode.append(dot);
    return share => { const at = 2 * Math.round(share * last);
                      dot.setAttribute('transform', `translate(${xy[at]} ${xy[at + 1]})`); };
  });
  const draw = () => {
    tiles.forEach(tile => tile.getContext('2d').drawImage(video, +tile.dataset.x, +tile.dataset.y, tile.width,
                                                          tile.height, 0, 0, tile.width, tile.height));
    const share = Math.min(1, video.currentTime / video.duration || 0);
    range.value = 1000 * share;
    time.textContent = `${video.currentTime.toFixed(1)} of ${(video.duration || 0).toFixed(1)} s`;
    [...clocks, ...paths].forEach(move => move(share));
  };
  const step = () => { draw(); if (!video.paused) requestAnimationFrame(step); };
  const start = () => { player.classList.add('live'); video.controls = false; draw();
                        if (+player.dataset.start) video.currentTime = +player.dataset.start; };
  if (video.readyState >= 2) start(); else video.addEventListener('loadeddata', start);
  video.addEventListener('play', () => { button.textContent = '❚❚'; button.ariaLabel = 'pause'; step(); });
  video.addEventListener('pause', () => { button.textContent = '▶'; button.ariaLabel = 'play'; draw(); });
  video.addEventListener('seeked', draw);
  let is_stopped = is_still;
  button.addEventListener('click', () => { is_stopped = !video.paused; is_stopped ? video.pause() : video.play(); });
  range.addEventListener('input', () => { is_stopped = true; video.pause();
                                          video.currentTime = range.value / 1000 * video.duration; });
  new IntersectionObserver(([entry]) => {
    if (entry.isIntersecting && !is_stopped) video.play().catch(() => {}); else video.pause();
  }, {threshold: 0.1}).observe(player);
});
