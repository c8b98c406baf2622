-- In how many depth bins the robust mean lies below or above the standard one, for the words of a
-- figure: per view of the weights, and published.
with means as (
    select
        b.dataset,
        b.metric,
        b.weights,
        b.depth_bin,
        b.kind,
        b.box.mean
    from depth_boxes as b
    union all
    select
        dataset,
        metric,
        'published' as weights,
        depth_bin,
        kind,
        box['mean'] as mean
    from published_boxes
    where reading <> 'layers alike'
),

sides as (
    select
        dataset,
        metric,
        weights,
        depth_bin,
        max(mean) filter (where kind = 'robust') as robust,
        max(mean) filter (where kind = 'standard') as standard
    from means
    group by all
)

select
    dataset,
    metric,
    weights,
    count(robust) filter (where standard is not null) as bins,
    count_if(robust < standard) as below,
    count_if(robust > standard) as above
from sides
group by dataset, metric, weights
having bins > 0
order by dataset, metric, weights
