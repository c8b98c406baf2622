-- about: weights
-- needs: pairs
with per_dataset as (
    select
        dataset,
        max(below) filter (where metric = 'first_ratio') as first_below,
        max(above) filter (where metric = 'first_ratio') as first_above,
        max(below) filter (where metric = 'sparsity') as sparsity_below,
        max(pairs) filter (where metric = 'sparsity') as sparsity_pairs,
        max(p_value) filter (where metric = 'sparsity') as p_value
    from answer
    where architecture = 'all'
    group by dataset
)

select
    format(
        'first component less in {} of {} pairs; less sparse in {} of {} (',
        sum(first_below), sum(first_below + first_above), sum(sparsity_below), sum(sparsity_pairs)
    )
    || string_agg(format('{} {}, p {:.2g}', dataset, sparsity_below, p_value), ', ' order by dataset)
    || ')' as shows,
    bool_and(first_below > first_above) as holds
from per_dataset
