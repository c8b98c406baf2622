-- title: Clean and robust accuracy
-- finding: Among robust models, clean and AutoAttack accuracy rise together (Spearman 0.71 / 0.46 / 1.0).
-- paper: correlation.ipynb cell 12
-- expect: positive
with ranked as (
    select
        dataset,
        rank() over (partition by dataset order by clean_acc)
        + (count(*) over (partition by dataset, clean_acc) - 1) / 2.0 as clean_rank,
        rank() over (partition by dataset order by autoattack_acc)
        + (count(*) over (partition by dataset, autoattack_acc) - 1) / 2.0 as autoattack_rank
    from models
    where robust and clean_acc is not null and autoattack_acc is not null
),

correlated as (
    select
        dataset,
        count(*) as models,
        corr(clean_rank, autoattack_rank) as spearman
    from ranked
    group by dataset
    having count(*) > 2
)

select
    c.dataset,
    c.models,
    c.spearman,
    p.value as published,
    c.spearman - p.value as difference,
    abs(c.spearman - p.value) <= p.precision as within
from correlated as c
left join paper as p on p.finding = 'accuracy_correlation' and c.dataset = p.dataset
order by c.dataset
