-- The bases: explained variance, its running total, and the direction as nine entries.
select
    p.basis,
    p.weights,
    p.component + 1 as component,
    p.n_samples,
    p.explained_variance_ratio as ratio,
    sum(p.explained_variance_ratio) over (
        partition by p.basis, p.weights order by p.component
    ) as cumulated,
    p.direction
from pca as p
where
    p.explained_variance_ratio is not null
    and (
        p.basis in ('full', 'robust', 'standard')
        or p.basis in (select c.model_id from chosen as c)
    )
order by p.basis not in ('full', 'robust', 'standard'), p.basis, p.weights, p.component
