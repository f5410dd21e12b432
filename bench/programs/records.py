"""Records of many small objects: built, grouped, walked by group, and sorted."""

import random
import sys

scale = float(sys.argv[1])
random.seed(12)
colours = ["amber", "blue", "coral", "drab", "ecru", "fawn", "gold", "hazel", "ivory", "jade"]


class Order:
    def __init__(self, number):
        self.number = number
        self.customer = f"{random.choice(colours)}-{number % 9973}"
        self.items = [(f"item {number * 7 % 389}", number % 13), (f"item {number * 3 % 1021}", 1)]
        self.notes = {"depot": f"depot {number % 613}", "weight": number * 31 % 997 / 8}


orders = [Order(number) for number in range(int(220_000 * scale))]
groups = {}
for order in orders:
    groups.setdefault(order.notes["depot"], []).append(order)
pieces = weight = 0
for _ in range(3):
    for depot in sorted(groups):
        for order in groups[depot]:
            pieces += order.items[0][1]
        weight += groups[depot][-1].notes["weight"]
orders.sort(key=lambda order: (order.customer, -order.number))
print(pieces, weight, orders[0].number, orders[-1].number, len(groups))
