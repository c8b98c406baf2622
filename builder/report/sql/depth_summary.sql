-- In how many depth bins the robust mean lies below or above the standard one, for the words of a
-- figure: per view of the weights, and published.
with means as (
    select
        m.dataset,
        v.metric,
        v.weights,
        v.depth_bin,
        avg(v.value) filter (where m.kind = 'robust' and isfinite(v.value)) as robust,
        avg(v.value) filter (where m.kind = 'standard' and isfinite(v.value)) as standard
    from members as m
    inner join depth_members as v on m.model_id = v.model_id
    group by m.dataset, v.metric, v.weights, v.depth_bin
    union all
    select
        dataset,
        replace(finding, '_by_depth', '') as metric,
        'published' as weights,
        depth_bin,
        max(value) filter (where kind = 'robust') as robust,
        max(value) filter (where kind = 'standard') as standard
    from paper
    where
        finding in ('sparsity_by_depth', 'variance_entropy_by_depth', 'orthogonality_by_depth')
        and metric = 'mean'
        and coalesce(reading, '') <> 'layers alike'
    group by dataset, finding, depth_bin
)

select
    dataset,
    metric,
    weights,
    count(robust) filter (where standard is not null) as bins,
    count_if(robust < standard) as below,
    count_if(robust > standard) as above
from means
group by dataset, metric, weights
having bins > 0
order by dataset, metric, weights
