"""A frame of pandas as sales are kept: a row for each day, shop and article, in that order, with
dates, names, whole numbers and prices. Grouped, joined, sorted."""

import numpy
import pandas

DAYS, SHOPS, ARTICLES = 300, 200, 50
count = DAYS * SHOPS * ARTICLES
chance = numpy.random.default_rng(21)
day = numpy.repeat(numpy.arange(DAYS), SHOPS * ARTICLES)
article = numpy.tile(numpy.arange(ARTICLES), DAYS * SHOPS)
names = numpy.array([f"article number {number}" for number in range(ARTICLES)], dtype=object)
prices = chance.integers(100, 9900, ARTICLES) / 100
frame = pandas.DataFrame({
    "date": numpy.datetime64("2025-01-01") + day,
    "shop": numpy.tile(numpy.repeat(numpy.arange(SHOPS), ARTICLES), DAYS),
    "article": names[article],
    "pieces": chance.poisson(1.2, count),
    # Three weeks at full price, one at a reduced one.
    "price": numpy.round(prices[article] * numpy.where(day // 7 % 4 == 3, 0.9, 1), 2),
})
frame["sum"] = frame["pieces"] * frame["price"]
shops = frame.groupby("shop")[["pieces", "sum"]].sum().round(2)
print(shops.head(3).to_csv(), end="")
joined = frame.merge(shops.rename(columns={"sum": "of_shop"})[["of_shop"]], left_on="shop", right_index=True)
joined["share"] = joined["sum"] / joined["of_shop"]
print(joined.groupby("date")["share"].sum().round(6).tail(3).to_csv(), end="")
named = frame[frame["article"].str.endswith("7")]
print(named.groupby("article")["pieces"].sum().to_csv(), end="")
ordered = frame.sort_values(["price", "date", "shop", "pieces"])
print(ordered[["shop", "date", "pieces"]].iloc[:: count // 5].to_csv(index=False), end="")
