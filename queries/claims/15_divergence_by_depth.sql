-- about: weights
-- needs: CIFAR pairs
with per_dataset as (
    select
        dataset,
        avg(divergence) filter (where depth_bin in (0, 9, 10)) as outer_bins,
        avg(divergence) filter (where depth_bin not in (0, 9, 10)) as inner_bins
    from answer
    where dataset like 'cifar%'
    group by dataset
)

select
    string_agg(
        format('{}: {:.3f} against {:.3f} between', dataset, outer_bins, inner_bins), ', ' order by dataset
    ) as shows,
    bool_and(outer_bins > inner_bins) as holds
from per_dataset
