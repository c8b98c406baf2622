-- about: weights
-- needs: 3x3 first layers of pairs
with compared as (
    select
        dataset,
        metric,
        max(mean) filter (where kind = 'robust') as robust,
        max(mean) filter (where kind = 'standard') as standard
    from answer
    where metric <> 'orthogonality'
    group by all
)

select
    string_agg(
        format('{} {} {:.3f} against {:.3f}', dataset, metric, robust, standard),
        ', ' order by dataset, metric
    ) as shows,
    bool_and(if(metric = 'sparsity', robust > standard, robust < standard)) as holds
from compared
