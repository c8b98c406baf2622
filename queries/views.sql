-- Views over a release, for the plain duckdb shell. Point one variable at it first:
--
--     set variable release = 'path/to/release';   -- or 'hf://datasets/ORG/NAME@v1.0.0'
--     .read queries/views.sql
--     .read queries/06_sparsity_overall.sql
--
-- `filters` comes last: a release without filters has no file for it, and the others still stand.

create or replace view models as
select * from read_parquet(getvariable('release') || '/data/models.parquet');

create or replace view pairs as
select * from read_parquet(getvariable('release') || '/data/pairs.parquet');

create or replace view layers as
select * from read_parquet(getvariable('release') || '/data/layers.parquet');

create or replace view pca as
select * from read_parquet(getvariable('release') || '/data/pca.parquet');

create or replace view histograms as
select * from read_parquet(getvariable('release') || '/data/histograms.parquet');

create or replace view first_layer as
select * from read_parquet(getvariable('release') || '/data/first_layer.parquet');

create or replace view paper as
select * from read_parquet(getvariable('release') || '/data/paper.parquet');

create or replace view filters as
select * from read_parquet(getvariable('release') || '/data/filters/*/*.parquet', hive_partitioning = true);
