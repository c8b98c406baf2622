-- In how many depth bins the robust mean lies below the standard one, for the words of a figure.
select
    dataset,
    metric,
    weights,
    count(robust) filter (where standard is not null) as bins,
    count_if(robust < standard) as below
from (
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
) as means
group by dataset, metric, weights
having bins > 0
order by dataset, metric, weights
