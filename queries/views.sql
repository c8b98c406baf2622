-- Views over a release and the formulas that queries share, for the plain duckdb shell too:
--
--     set variable release = 'path/to/release';   -- or 'hf://datasets/ORG/NAME@v1.0.0'
--     .read queries/views.sql
--     .read queries/06_sparsity_overall.sql
--
-- No Hive partitions: every column is in the files, whatever the folders above a release are called.
-- `filters`, and what is computed from it, come last: a release without filters has no file for them,
-- and the others still stand.

create or replace view models as
select * from read_parquet(getvariable('release') || '/data/models.parquet', hive_partitioning = false);

create or replace view pairs as
select * from read_parquet(getvariable('release') || '/data/pairs.parquet', hive_partitioning = false);

create or replace view layers as
select * from read_parquet(getvariable('release') || '/data/layers.parquet', hive_partitioning = false);

create or replace view pca as
select * from read_parquet(getvariable('release') || '/data/pca.parquet', hive_partitioning = false);

create or replace view histograms as
select * from read_parquet(getvariable('release') || '/data/histograms.parquet', hive_partitioning = false);

create or replace view first_layer as
select * from read_parquet(getvariable('release') || '/data/first_layer.parquet', hive_partitioning = false);

create or replace view paper as
select * from read_parquet(getvariable('release') || '/data/paper.parquet', hive_partitioning = false);

-- Findings are about one threat model; several are never pooled. It is the one asked for (`set variable
-- threat_model = 'L2'`), else Linf, else the first of those in the release. A robust model without one
-- counts as Linf.
create or replace view study as
select
    if(count_if(coalesce(threat_model, 'Linf') = 'Linf') > 0, 'Linf', min(threat_model)) as stored,
    coalesce(getvariable('threat_model'), stored) as threat_model
from models
where robust;

-- Its robust models and all standard ones, and the pairs of those.
create or replace view study_models as
select m.*
from models as m
cross join study as s
where not m.robust or coalesce(m.threat_model, 'Linf') = s.threat_model;

create or replace view study_pairs as
select p.*
from pairs as p
where p.robust_model_id in (select m.model_id from study_models as m);

-- The bases of its models taken together: `full`, `robust` and `standard`. A release calls those of the
-- threat model of its own findings so, and those of another full:L2, robust:L2.
create or replace view study_bases as
with unions as (
    select
        s.*,
        unnest(['full', 'robust', 'standard']) as kind
    from study as s
)

select p.* replace (u.kind as basis)
from pca as p
inner join unions as u
    on
        p.basis = u.kind
        || if(u.kind = 'standard' or u.threat_model is not distinct from u.stored, '', ':' || u.threat_model);

-- The two sides of every pair; a standard model stands once per robust model that it is compared with.
create or replace view members as
with sides as (
    select
        *,
        unnest(['robust', 'standard']) as kind
    from study_pairs
)

select
    dataset,
    robust_model_id as pair,
    kind,
    if(kind = 'robust', robust_model_id, standard_model_id) as model_id
from sides;

-- A box plot's numbers. A whisker reaches the last value within 1.5 box heights, and never into the box.
create or replace macro box(points) as (
    with quartiles as (
        select
            quantile_cont(value, 0.25) as q1,
            quantile_cont(value, 0.5) as median,
            quantile_cont(value, 0.75) as q3,
            avg(value) as mean
        from (select unnest(points) as value) as p
    ),

    judged as (
        select
            q.*,
            p.value,
            p.value between q.q1 - 1.5 * (q.q3 - q.q1) and q.q3 + 1.5 * (q.q3 - q.q1) as near
        from (select unnest(points) as value) as p
        cross join quartiles as q
    )

    select
        struct_pack(
            n_points := count(*),
            whisker_low := least(min(value) filter (where near), q1),
            q1 := q1,
            median := median,
            q3 := q3,
            whisker_high := greatest(max(value) filter (where near), q3),
            n_outliers := count(*) filter (where not near),
            mean := mean
        )
    from judged
    group by q1, median, q3, mean
);

-- The largest difference between two boxes; the second one as a map, the way `paper` lists it.
create or replace macro box_difference(ours, theirs) as greatest(
    abs(ours.whisker_low - theirs['whisker_low']),
    abs(ours.q1 - theirs['q1']),
    abs(ours.median - theirs['median']),
    abs(ours.q3 - theirs['q3']),
    abs(ours.whisker_high - theirs['whisker_high']),
    abs(ours.n_outliers - theirs['n_outliers']),
    abs(ours.mean - theirs['mean'])
);

-- What the depth figures draw: one value per model, depth bin and view of the weights, of the layers that
-- have one. Layers count by filters (sparsity), by non-sparse filters (variance entropy), by output
-- channels (orthogonality).
create or replace view depth_values as
select
    dataset,
    model_id,
    weights,
    depth_bin,
    unnest(['sparsity', 'variance_entropy', 'orthogonality']) as metric,
    unnest([
        sum(n_sparse) / sum(n_filters) filter (where n_sparse is not null),
        sum(variance_entropy * (n_filters - n_sparse))
        / sum(n_filters - n_sparse) filter (where variance_entropy is not null),
        sum(orthogonality * out_channels)
        / sum(out_channels) filter (where orthogonality is not null)
    ]) as value
from layers
group by dataset, model_id, weights, depth_bin;

-- Their box plots over the members of pairs.
create or replace view depth_boxes as
select
    m.dataset,
    v.metric,
    v.weights,
    v.depth_bin,
    m.kind,
    box(list(v.value)) as box
from members as m
inner join depth_values as v on m.model_id = v.model_id
where isfinite(v.value)
group by all;

-- The paper's, as maps of their numbers; of the two readings of variance entropy, `layers alike` apart.
create or replace view published_boxes as
select
    replace(finding, '_by_depth', '') as metric,
    dataset,
    kind,
    depth_bin,
    coalesce(reading, 'weighted by filters') as reading,
    map(list(metric), list(value)) as box,
    max(precision) as precision
from paper
where finding in ('sparsity_by_depth', 'variance_entropy_by_depth', 'orthogonality_by_depth')
group by all;

-- Symmetric Kullback-Leibler divergence of two histograms, given as lists of counts. An empty bin
-- counts float32 epsilon, as in the paper's code; a histogram without any count has no divergence.
create or replace macro divergence(counts_a, counts_b) as (
    with filled as (
        select
            list_transform(counts_a, lambda n: if(n = 0, 1.1920928955078125e-07, n::double)) as a,
            list_transform(counts_b, lambda n: if(n = 0, 1.1920928955078125e-07, n::double)) as b
        where list_max(counts_a) > 0 and list_max(counts_b) > 0
    ),

    shares as (
        select
            unnest(a) / list_sum(a) as p,
            unnest(b) / list_sum(b) as q
        from filled
    )

    select sum((p - q) * ln(p / q)) from shares
);

-- Divergence of the robust and the standard members of a data set: of the coefficient histograms on the
-- full basis, weighted by its explained variance. Per depth bin, and over all of them (depth_bin null);
-- standard models once per pair (`pairs`), or each model once (`distinct`).
create or replace view divergences as
with readings as (
    select
        'pairs' as reading,
        dataset,
        kind,
        model_id
    from members
    union all
    select distinct
        'distinct' as reading,
        dataset,
        kind,
        model_id
    from members
),

counted as (
    select
        m.reading,
        m.dataset,
        m.kind,
        h.depth_bin,
        h.component,
        h.bin,
        sum(h.n) as n
    from readings as m
    inner join histograms as h on m.model_id = h.model_id
    group by rollup (m.reading, m.dataset, m.kind, h.component, h.bin, h.depth_bin)
    having h.bin is not null
),

per_component as (
    select
        reading,
        dataset,
        depth_bin,
        component,
        divergence(
            list(n order by bin) filter (where kind = 'robust'),
            list(n order by bin) filter (where kind = 'standard')
        ) as divergence
    from counted
    group by all
)

select
    c.reading,
    c.dataset,
    c.depth_bin,
    sum(w.explained_variance_ratio * c.divergence) as divergence
from per_component as c
inner join pca as w on w.basis = 'full' and w.weights = 'folded' and c.component = w.component
group by all
having divergence is not null;

-- Spearman's rank correlation of two lists; equal values share their mean rank. Null where all are equal.
create or replace macro spearman(xs, ys) as (
    with points as (
        select
            unnest(xs) as x,
            unnest(ys) as y
    ),

    ranked as (
        select
            rank() over (order by x) + (count(*) over (partition by x) - 1) / 2.0 as x_rank,
            rank() over (order by y) + (count(*) over (partition by y) - 1) / 2.0 as y_rank
        from points
    )

    select nullif(corr(x_rank, y_rank), 'nan'::double) from ranked
);

-- The 45 entries of a symmetric nine by nine matrix as layers.scatter packs it; all counts from 1.
create or replace view scatter_entries as
select
    row_number() over (order by a.range, b.range) as entry,
    a.range as i,
    b.range as j
from range(1, 10) as a
inner join range(1, 10) as b on a.range <= b.range;

-- The nine orthonormal 3x3 DCT-II functions: frequency of the rows and of the columns, their order (the
-- larger one; 0 is the constant), the function c, row-major, and c c' packed so that its dot product with
-- a packed matrix S is c' S c.
create or replace view dct_basis as
with frequencies as (
    select
        u.range as row_frequency,
        v.range as column_frequency
    from range(3) as u
    cross join range(3) as v
),

functions as (
    select
        row_frequency,
        column_frequency,
        greatest(row_frequency, column_frequency) as dct_order,
        list_transform(
            range(9),
            lambda k: sqrt(if(row_frequency > 0, 2, 1) * if(column_frequency > 0, 2, 1)) / 3
            * cos(pi() * (2 * (k // 3) + 1) * row_frequency / 6)
            * cos(pi() * (2 * (k % 3) + 1) * column_frequency / 6)
        ) as c
    from frequencies
)

select
    f.row_frequency,
    f.column_frequency,
    f.dct_order,
    f.c,
    list(if(e.i = e.j, 1, 2) * f.c[e.i] * f.c[e.j] order by e.entry) as packed
from functions as f
cross join scatter_entries as e
group by all;

-- Exact two-sided sign test of `below` against `above`; ties count in neither.
create or replace macro sign_test(below, above) as if(
    below + above = 0,
    null,
    least(
        1,
        2 * list_sum(
            list_transform(
                range(least(below, above)::bigint + 1),
                lambda i: exp(
                    lgamma(below + above + 1) - lgamma(i + 1) - lgamma(below + above - i + 1)
                    - (below + above) * ln(2)
                )
            )
        )
    )
);

-- Natural entropy of shares that sum to 1; its exponential is how many of them count.
create or replace macro entropy(shares) as -list_sum(
    list_transform(shares, lambda p: if(p > 0, p * ln(p), 0))
);

create or replace view filters as
select * from read_parquet(getvariable('release') || '/data/filters/*/*.parquet', hive_partitioning = false);

-- Filters of one model (null: of every model) in the views asked for, a list of `trained` and `folded`:
-- the nine weights and their largest magnitude, in float32 as folding computes them, then in float64.
create or replace macro viewed_filters(model, views) as table (
    with viewed as not materialized (
        select
            *,
            unnest(views) as weights
        from filters
        where model_id = coalesce(model, model_id)
    )

    select
        model_id,
        layer_index,
        out_channel,
        in_channel,
        weights,
        if(weights = 'folded', bn_scale, 1::float) as factor,
        (linf * abs(factor))::double as length,
        (w00 * factor)::double as x0,
        (w01 * factor)::double as x1,
        (w02 * factor)::double as x2,
        (w10 * factor)::double as x3,
        (w11 * factor)::double as x4,
        (w12 * factor)::double as x5,
        (w20 * factor)::double as x6,
        (w21 * factor)::double as x7,
        (w22 * factor)::double as x8
    from viewed
);

-- The largest magnitude of each layer; null where a weight is not finite: such a layer has no metrics.
create or replace macro layer_scales(model, views) as table (
    select
        model_id,
        layer_index,
        weights,
        if(isfinite(max(length)), max(length), null) as layer_linf
    from viewed_filters(model, views)
    group by all
);

-- The non-sparse ones among them; dividing by `length` scales them.
create or replace macro kept_filters(model, views) as table (
    with viewed as not materialized (
        select * from viewed_filters(model, views)
    ),

    scales as (
        select * from layer_scales(model, views)
    )

    select f.*
    from viewed as f
    inner join scales as s using (model_id, layer_index, weights)
    where f.length > s.layer_linf / 100
);

-- Moments of the scaled non-sparse filters of every layer. A row per entry (i, j), i <= j, of the nine by
-- nine matrix, numbered from 1 as in layers.scatter: the sums of x_i, of x_j and of their product.
create or replace macro moments(model, views) as table (
    with scaled as not materialized (
        select
            model_id,
            layer_index,
            weights,
            x0 / length as x0,
            x1 / length as x1,
            x2 / length as x2,
            x3 / length as x3,
            x4 / length as x4,
            x5 / length as x5,
            x6 / length as x6,
            x7 / length as x7,
            x8 / length as x8
        from kept_filters(model, views)
    ),

    sums as (
        select
            model_id,
            layer_index,
            weights,
            count(*) as n,
            [
                sum(x0), sum(x1), sum(x2), sum(x3), sum(x4), sum(x5), sum(x6), sum(x7), sum(x8)
            ] as x,
            [
                sum(x0 * x0), sum(x0 * x1), sum(x0 * x2), sum(x0 * x3), sum(x0 * x4), sum(x0 * x5),
                sum(x0 * x6), sum(x0 * x7), sum(x0 * x8), sum(x1 * x1), sum(x1 * x2), sum(x1 * x3),
                sum(x1 * x4), sum(x1 * x5), sum(x1 * x6), sum(x1 * x7), sum(x1 * x8), sum(x2 * x2),
                sum(x2 * x3), sum(x2 * x4), sum(x2 * x5), sum(x2 * x6), sum(x2 * x7), sum(x2 * x8),
                sum(x3 * x3), sum(x3 * x4), sum(x3 * x5), sum(x3 * x6), sum(x3 * x7), sum(x3 * x8),
                sum(x4 * x4), sum(x4 * x5), sum(x4 * x6), sum(x4 * x7), sum(x4 * x8), sum(x5 * x5),
                sum(x5 * x6), sum(x5 * x7), sum(x5 * x8), sum(x6 * x6), sum(x6 * x7), sum(x6 * x8),
                sum(x7 * x7), sum(x7 * x8), sum(x8 * x8)
            ] as products
        from scaled
        group by all
    )

    select
        s.model_id,
        s.layer_index,
        s.weights,
        s.n,
        e.entry,
        e.i,
        e.j,
        s.x[e.i] as sum_i,
        s.x[e.j] as sum_j,
        s.products[e.entry] as product
    from sums as s
    cross join scatter_entries as e
);

-- The stored histograms, and `n`, the same counts from the filters: scaled, non-sparse and folded,
-- centred and projected on the full basis.
create or replace macro recounted(model) as table (
    with kept as not materialized (
        select * from kept_filters(model, ['folded'])
    ),

    stored as (
        select * from histograms
        where model_id = coalesce(model, model_id)
    ),

    basis as (
        select
            component,
            direction as d,
            list_dot_product(direction, mean) as centre
        from pca
        where basis = 'full' and weights = 'folded'
    ),

    extent as (
        select
            min(bin_low) as low,
            max(bin_high) as high,
            (high - low) / 70 as width
        from histograms
    ),

    coefficients as (
        select
            k.model_id,
            k.layer_index,
            b.component,
            (
                k.x0 * b.d[1] + k.x1 * b.d[2] + k.x2 * b.d[3]
                + k.x3 * b.d[4] + k.x4 * b.d[5] + k.x5 * b.d[6]
                + k.x6 * b.d[7] + k.x7 * b.d[8] + k.x8 * b.d[9]
            ) / k.length - b.centre as coefficient
        from kept as k
        cross join basis as b
    ),

    per_layer as (
        select
            c.model_id,
            c.layer_index,
            c.component,
            if(
                e.width > 0, greatest(least(floor((c.coefficient - e.low) / e.width), 69), 0), 0
            )::smallint as bin,
            count(*) as n
        from coefficients as c
        cross join extent as e
        group by all
    ),

    counted as (
        select
            c.model_id,
            l.depth_bin,
            c.component,
            c.bin,
            sum(c.n)::bigint as n
        from per_layer as c
        inner join layers as l using (model_id, layer_index)
        where l.weights = 'folded'
        group by all
    )

    select
        h.model_id,
        h.depth_bin,
        h.component,
        h.bin,
        h.n as stored,
        coalesce(c.n, 0) as n
    from stored as h
    left join counted as c using (model_id, depth_bin, component, bin)
);
