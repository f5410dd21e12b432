// A day of requests as a service keeps them: lines of JSON in buffers, read twice.
const { createHash } = require('crypto');

const scale = Number(process.argv[2]);
let state = 16;
const below = (limit) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state >>> 4) % limit;
};
const paths = ['account', 'basket', 'cart', 'delivery', 'export', 'feed', 'gallery', 'home'];
const buffers = [];
for (let number = 0; buffers.length < 200 * scale; ) {
  const lines = [];
  for (let size = 0; size < 1 << 20; number++) {
    const line = JSON.stringify({
      number, path: `/${paths[below(8)]}/${below(4000)}`, status: below(25) ? 200 : 503,
      user: `user ${below(90000)}`, micros: below(1e6), agent: 'Mozilla/5.0 (X11; Linux x86_64)',
    });
    lines.push(line);
    size += line.length;
  }
  buffers.push(Buffer.from(lines.join('\n')));
}
for (let round = 0; round < 2; round++) {
  const hash = createHash('sha1');
  for (const buffer of buffers) hash.update(buffer);
  console.log(hash.digest('hex'));
}
let answers = 0;
for (let ask = 0; ask < 200000 * scale; ask++) {
  const buffer = buffers[below(buffers.length)];
  answers += buffer[below(buffer.length)];
}
console.log(answers);
