-- about: weights
-- needs: filters of CIFAR pairs
with thresholds as (
    select
        dataset,
        depth_bin,
        kind,
        unnest([1000, 500, 200, 100, 50, 20, 10]) as part,
        unnest([
            sparsity_1000, sparsity_500, sparsity_200, sparsity_100, sparsity_50, sparsity_20, sparsity_10
        ]) as sparsity
    from answer
    where depth_bin > 0 and dataset like 'cifar%'
),

gaps as (
    select
        dataset,
        part,
        depth_bin,
        max(sparsity) filter (where kind = 'standard') - max(sparsity) filter (where kind = 'robust') as gap
    from thresholds
    group by all
),

per_threshold as (
    select
        part,
        count(gap) as bins,
        count_if(gap > 0) as agreeing
    from gaps
    group by part
    having count(gap) > 0
)

select
    'less sparse in '
    || string_agg(format('{} of {} (1/{})', agreeing, bins, part), ', ' order by part desc)
    || ' depth bins' as shows,
    bool_and(2 * agreeing > bins) as holds
from per_threshold
