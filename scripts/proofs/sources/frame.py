"""A frame of pandas: grouped, joined, sorted."""

import numpy
import pandas

chance = numpy.random.default_rng(21)
count = 3_000_000
frame = pandas.DataFrame({
    "shop": chance.integers(0, 400, count),
    "day": numpy.arange(count) // 9000,
    "pieces": chance.integers(1, 20, count),
    "price": chance.integers(100, 9900, count) / 100,
})
frame["sum"] = frame["pieces"] * frame["price"]
shops = frame.groupby("shop")[["pieces", "sum"]].sum().round(2)
print(shops.head(3).to_csv(), end="")
joined = frame.merge(shops.rename(columns={"sum": "of_shop"})[["of_shop"]], left_on="shop", right_index=True)
joined["share"] = joined["sum"] / joined["of_shop"]
print(joined.groupby("day")["share"].sum().round(6).tail(3).to_csv(), end="")
ordered = frame.sort_values(["price", "day", "shop", "pieces"])
print(ordered[["shop", "day", "pieces"]].iloc[:: count // 5].to_csv(index=False), end="")
