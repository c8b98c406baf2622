-- title: Explained variance of every model
-- finding: Each of the 114 models has nine published explained variance ratios.
-- paper: pca_dict.cpkl
-- expect: equal; beside the sparse counts the sharpest test of a build from the real checkpoints
-- note: `ratio` is the first of nine; `difference` is the largest of the nine.
select
    m.model_id,
    max(o.n_samples) as n_samples,
    max(o.explained_variance_ratio) filter (where o.component = 0) as ratio,
    max(p.value) filter (where o.component = 0) as published,
    max(abs(o.explained_variance_ratio - p.value)) as difference,
    bool_and(abs(o.explained_variance_ratio - p.value) <= p.precision) as within
from models as m
inner join pca as o on m.model_id = o.basis and o.weights = 'folded'
left join paper as p
    on p.finding = 'explained_variance_by_model' and m.model_id = p.model_id and o.component = p.component
where o.explained_variance_ratio is not null
group by m.dataset, m.model_id
order by m.dataset, m.model_id
