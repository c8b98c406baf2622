-- title: Divergence per data set, from the filters
-- finding: Symmetric KL of robust and standard coefficient histograms, all the way from the raw filters.
-- expect: equal to what 14_divergence makes of the stored histograms (`pairs`)
with summed as (
    select
        m.dataset,
        m.kind,
        r.component,
        r.bin,
        sum(r.n) as n,
        sum(r.stored) as stored
    from members as m
    inner join recounted(null) as r using (model_id)
    group by all
),

per_component as (
    select
        dataset,
        component,
        divergence(
            list(n order by bin) filter (where kind = 'robust'),
            list(n order by bin) filter (where kind = 'standard')
        ) as divergence,
        divergence(
            list(stored order by bin) filter (where kind = 'robust'),
            list(stored order by bin) filter (where kind = 'standard')
        ) as stored_divergence
    from summed
    group by all
)

select
    c.dataset,
    sum(w.explained_variance_ratio * c.divergence) as value,
    sum(w.explained_variance_ratio * c.stored_divergence) as stored,
    value - stored as difference,
    abs(difference) <= 1e-6 * (1 + stored) as within
from per_component as c
inner join pca as w on w.basis = 'full' and w.weights = 'folded' and c.component = w.component
group by c.dataset
order by c.dataset
