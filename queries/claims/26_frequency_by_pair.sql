-- about: weights
-- needs: pairs
select
    format(
        'less constant in {} of {} pairs; more of order 2 in {} of {} CIFAR pairs',
        count_if(constant_difference < 0),
        count(constant_difference),
        count_if(order_2_difference > 0 and dataset like 'cifar%'),
        count(order_2_difference) filter (where dataset like 'cifar%')
    ) as shows,
    if(
        count(constant_difference) > 0,
        2 * count_if(constant_difference < 0) > count(constant_difference)
        and 2 * count_if(order_2_difference > 0 and dataset like 'cifar%')
        >= count(order_2_difference) filter (where dataset like 'cifar%'),
        null
    ) as holds
from answer
