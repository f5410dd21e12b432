"""Frames of Polars: grouped, joined, sorted."""

import polars

count = 5_000_000
number = polars.int_range(count, eager=True)
frame = polars.DataFrame({
    "number": number,
    "guest": number * 7919 % 100003,
    "shop": number * 31 % 1009,
    "pieces": number * 17 % 23 + 1,
})
print(frame.group_by("shop").agg(polars.col("pieces").sum(), polars.len()).sort("shop").head(3).rows())
guests = frame.group_by("guest").agg(polars.col("pieces").sum().alias("of_guest"))
joined = frame.join(guests, on="guest")
print(joined.select((polars.col("pieces") * polars.col("of_guest")).sum(), polars.len()).rows())
print(frame.sort(["pieces", "guest", "number"], descending=[True, False, False])["number"].gather_every(1_000_000).to_list())
