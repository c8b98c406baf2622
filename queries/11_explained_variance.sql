-- title: Explained variance of the common bases
-- finding: Robust filters spread their variance wider: the first component explains 39 %, standard 67 %.
-- paper: pca_dict.cpkl; pca.ipynb
-- expect: first ratio of standard above robust
select
    o.basis as kind,
    o.component,
    o.n_samples,
    n.value::bigint as published_n_samples,
    t.explained_variance_ratio as ratio_trained,
    o.explained_variance_ratio as ratio,
    p.value as published,
    ratio - p.value as difference,
    abs(ratio - p.value) <= p.precision as within
from study_bases as o
left join study_bases as t on o.basis = t.basis and o.component = t.component and t.weights = 'trained'
left join paper as p
    on
        p.finding = 'explained_variance'
        and p.metric = 'ratio'
        and o.basis = p.kind
        and o.component = p.component
left join paper as n on n.finding = 'explained_variance' and n.metric = 'n_samples' and o.basis = n.kind
where o.weights = 'folded' and o.explained_variance_ratio is not null
order by kind, o.component
