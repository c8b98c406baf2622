-- about: weights
-- needs: layers of CIFAR pairs
with gaps as (
    select
        dataset,
        depth_bin,
        max(mean) filter (where kind = 'robust') - max(mean) filter (where kind = 'standard') as gap
    from answer
    where depth_bin > 0 and dataset like 'cifar%'
    group by all
),

per_dataset as (
    select
        dataset,
        count(gap) as bins,
        count_if(gap > 0) as agreeing
    from gaps
    group by dataset
)

select
    string_agg(format('{}: {} of {} depth bins', dataset, agreeing, bins), ', ' order by dataset) as shows,
    bool_and(2 * agreeing > bins) as holds
from per_dataset
where bins > 0
