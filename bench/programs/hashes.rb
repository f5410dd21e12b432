# Visits in hashes of hashes: made, grouped, changed by chance, written as JSON.
require 'digest'
require 'json'

scale = Float(ARGV[0])
state = 19
chance = lambda do |limit|
  state = (state * 1_103_515_245 + 12_345) & 0x7fffffff
  (state >> 8) % limit
end
visits = {}
(300_000 * scale).to_i.times do |number|
  visits["visit #{number}"] = {
    shop: chance.call(1009), note: "paid #{chance.call(100_000)} at the door on day #{number / 4000}",
    tags: [number % 7, "tag #{number % 11}"]
  }
end
by_shop = visits.values.group_by { |visit| visit[:shop] }
(200_000 * scale).to_i.times do
  visit = visits["visit #{chance.call(visits.size)}"]
  visit[:note] = visit[:note].tr('a-y', 'b-z') if visit[:tags][0] == 3
end
digest = Digest::SHA256.new
by_shop.sort.each { |shop, own| digest << shop.to_s << own.map { |visit| visit[:note].size }.sum.to_s }
visits.each { |key, visit| digest << key << visit.to_json }
puts visits.size, by_shop.size, digest.hexdigest
