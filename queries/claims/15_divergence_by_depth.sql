-- about: weights
-- needs: CIFAR pairs
with per_dataset as (
    select
        dataset,
        avg(divergence) filter (where depth_bin = 0) as first,
        avg(divergence) filter (where depth_bin in (9, 10)) as deepest,
        avg(divergence) filter (where depth_bin not in (0, 9, 10)) as inner_bins
    from answer
    where dataset like 'cifar%'
    group by dataset
)

select
    string_agg(
        format('{}: first {:.3f}, deepest {:.3f}, between {:.3f}', dataset, first, deepest, inner_bins),
        ', ' order by dataset
    ) as shows,
    bool_and(least(first, deepest) > inner_bins) as holds
from per_dataset
