//! Tests the selector of `latency` below a device of a pool.

use blkswitch_examples::latency::least_latency;
use blkswitch_io::client::{Ask, ClientOptions};
use blkswitch_io::multipath::MultipathBuilder;
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, Pool, PoolOptions, TableBuilder};

#[test]
fn the_faster_path_has_the_load_and_the_other_is_there_when_it_fails() {
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() }).unwrap();
    let mut table = TableBuilder::new(false);
    let mut paths = MultipathBuilder::new().group(least_latency());
    for address in
        ["sim:1M,name=latency,path=0,delay=5ms..6ms", "sim:1M,name=latency,path=1,delay=50us..60us"]
    {
        let leaf = Leaf::open(&address.parse().unwrap(), &LeafOptions::new(pool.queues())).unwrap();
        paths = paths.path(table.leaf(leaf));
    }
    table.push(2048, paths.build().unwrap());
    let device = pool.registry().create("volume", "", None).unwrap();
    device.load(table.build().unwrap()).unwrap();
    device.resume().unwrap();
    let mut client = pool.client(&device, ClientOptions::default()).unwrap();
    let mut read = |number: u64| {
        let mut answers = Vec::new();
        let memory = AlignedBytes::zeroed(4096).unwrap();
        client.start(Ask::read(number % 256 * 4096, memory, number)).unwrap();
        client.wait(&mut answers, None).unwrap();
        answers.remove(0).result.unwrap();
    };
    (0..200).for_each(&mut read);
    let table = device.live().unwrap();
    let [slow, fast] = [table.path_totals(0).reads, table.path_totals(1).reads];
    assert!(slow > 0 && slow < 30 && slow + fast == 200, "{slow} slow, {fast} fast");
    device.messenger(0).unwrap().change(|paths, mut on| paths.fail_path(1, &mut on)).unwrap();
    (0..5).for_each(&mut read);
    assert_eq!(table.path_totals(0).reads, slow + 5);
    pool.stop();
}
