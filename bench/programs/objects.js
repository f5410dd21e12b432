// Visits as objects on node's own heap: made, grouped, changed by chance, summed.
const scale = Number(process.argv[2]);
let state = 18;
const below = (limit) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state >>> 4) % limit;
};
const pages = ['start', 'search', 'basket', 'order', 'help', 'account', 'offers', 'map'];
const visits = new Map();
for (let number = 0; number < 480000 * scale; number++) {
  visits.set(`visit ${number}`, {
    number, user: `user ${below(90000)}`, steps: [pages[below(8)], pages[below(8)], below(1e6)], paid: below(1e5) / 100,
  });
}
const byUser = new Map();
for (const visit of visits.values()) {
  const own = byUser.get(visit.user);
  if (own) own.push(visit); else byUser.set(visit.user, [visit]);
}
for (let ask = 0; ask < 300000 * scale; ask++) {
  const visit = visits.get(`visit ${below(visits.size)}`);
  visit.paid = Math.round(visit.paid * 100 + visit.steps[2] % 7) / 100;
}
let most = '', sum = 0;
for (const [user, own] of [...byUser].sort()) {
  for (const visit of own) sum += visit.paid;
  if (own.length > (byUser.get(most) || []).length) most = user;
}
console.log(visits.size, byUser.size, most, sum.toFixed(2));
