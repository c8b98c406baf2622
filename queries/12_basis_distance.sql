-- title: Distance between our bases and the published ones
-- finding: One basis describes the filters: its first direction is a blob, the next ones are edges.
-- paper: pca_dict.cpkl; pca.ipynb
-- expect: |cosine| near 1 for every component
-- note: The sign of a direction is arbitrary, so |cosine| counts; `difference` is 1 - |cosine|.
with published as (
    select
        kind,
        component,
        list(value order by entry) as direction,
        max(precision) as precision
    from paper
    where finding = 'basis_distance'
    group by all
)

select
    o.basis as kind,
    o.component,
    o.explained_variance_ratio as ratio,
    abs(list_dot_product(o.direction, p.direction)) as cosine,
    degrees(acos(least(cosine, 1.0))) as angle,
    if(p.kind is null, null, 1.0) as published,
    1.0 - cosine as difference,
    abs(difference) <= p.precision as within
from study_bases as o
left join published as p on o.basis = p.kind and o.component = p.component
where o.weights = 'folded' and o.direction is not null
order by kind, o.component
