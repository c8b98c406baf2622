-- title: Effect of robustness within pairs
-- finding: The first component explains less in 71 of 71 pairs; sparsity is lower in 45 only.
-- origin: ours
-- paper: none; the published values of 71 pairs, taken together
-- expect: sparsity and first_ratio of robust below standard; spectrum_entropy above
-- note: Trained models are the samples, not filters or layers. The sign test takes pairs for independent;
--       those that share a standard model are not, so the 95 % interval of the median difference (robust
--       minus standard) resamples standard models, each with all its pairs: percentiles of 1000 medians,
--       drawn by MD5 of seed, resample and place. Names of one set of weights are one standard model;
--       one alone gives no interval.
-- param: seed, of the resampling; default 0
with spectra as (
    select
        basis as model_id,
        max(explained_variance_ratio) as first_ratio,
        entropy(list(explained_variance_ratio)) / ln(10) as spectrum_entropy
    from pca
    where weights = 'folded'
    group by basis
    having count(explained_variance_ratio) = 9 and sum(explained_variance_ratio) > 0
),

measured as (
    select
        m.model_id,
        unnest([
            'sparsity', 'first_ratio', 'spectrum_entropy', 'variance_entropy', 'orthogonality'
        ]) as metric,
        unnest([
            m.sparsity, s.first_ratio, s.spectrum_entropy, m.variance_entropy, m.orthogonality
        ]) as value
    from models as m
    left join spectra as s on m.model_id = s.model_id
),

differences as (
    select
        p.dataset,
        unnest(['all', p.architecture]) as architecture,
        coalesce(m.same_filters_as, m.model_id) as standard_model,
        r.metric,
        r.value - s.value as difference
    from study_pairs as p
    inner join models as m on p.standard_model_id = m.model_id
    inner join measured as r on p.robust_model_id = r.model_id
    inner join measured as s on p.standard_model_id = s.model_id and r.metric = s.metric
    where r.value is not null and s.value is not null
),

clustered as (
    select
        *,
        dense_rank() over (
            partition by dataset, architecture, metric order by standard_model
        ) as cluster
    from differences
),

effects as (
    select
        dataset,
        architecture,
        metric,
        count(*) as pairs,
        max(cluster) as standard_models,
        count(*) filter (where difference < 0) as below,
        count(*) filter (where difference > 0) as above,
        median(difference) as median_difference
    from clustered
    group by all
),

most as (
    select max(standard_models) as standard_models from effects
),

places as (
    select
        r.range as resample,
        unnest(range(m.standard_models)) as place
    from range(1000) as r
    cross join most as m
),

-- The first 52 bits of an MD5, as a number below 1.
draws as (
    select
        resample,
        place,
        md5(format('{}:{}:{}', coalesce(getvariable('seed'), '0'), resample, place)) as digest,
        ('0x' || digest[1:13])::ubigint / 16.0 ** 13 as draw
    from places
),

medians as (
    select
        c.dataset,
        c.architecture,
        c.metric,
        d.resample,
        median(c.difference) as median_difference
    from effects as e
    inner join draws as d on e.standard_models > d.place
    inner join clustered as c
        on
            e.dataset = c.dataset
            and e.architecture = c.architecture
            and e.metric = c.metric
            and c.cluster = 1 + floor(d.draw * e.standard_models)
    where e.standard_models > 1
    group by all
),

intervals as (
    select
        dataset,
        architecture,
        metric,
        quantile_cont(median_difference, 0.025) as low,
        quantile_cont(median_difference, 0.975) as high
    from medians
    group by all
)

select
    e.dataset,
    e.architecture,
    e.metric,
    e.pairs,
    e.standard_models,
    e.below,
    e.above,
    sign_test(e.below, e.above) as p_value,
    e.median_difference,
    i.low,
    i.high
from effects as e
left join intervals as i using (dataset, architecture, metric)
order by e.dataset, e.architecture, e.metric
