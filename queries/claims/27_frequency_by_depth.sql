-- about: weights
-- needs: layers of CIFAR pairs
with gaps as (
    select
        dataset,
        depth_bin,
        max(constant) filter (where kind = 'standard') - max(constant) filter (where kind = 'robust') as gap
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
    string_agg(
        format('{}: less constant in {} of {} depth bins', dataset, agreeing, bins), ', ' order by dataset
    ) as shows,
    bool_and(2 * agreeing > bins) as holds
from per_dataset
where bins > 0
