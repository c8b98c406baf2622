-- Views over a release and the formulas that queries share, for the plain duckdb shell too:
--
--     set variable release = 'path/to/release';   -- or 'hf://datasets/ORG/NAME@v1.0.0'
--     .read queries/views.sql
--     .read queries/06_sparsity_overall.sql
--
-- No Hive partitions: every column is in the files, whatever the folders above a release are called.
-- `filters` comes last: a release without filters has no file for it, and the others still stand.

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

-- The two sides of every pair; a standard model stands once per robust model that it is compared with.
create or replace view members as
select
    dataset,
    robust_model_id as pair,
    unnest(['robust', 'standard']) as kind,
    unnest([robust_model_id, standard_model_id]) as model_id
from pairs;

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

create or replace view filters as
select * from read_parquet(getvariable('release') || '/data/filters/*/*.parquet', hive_partitioning = false);
