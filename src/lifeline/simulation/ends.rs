//! How it ends, in any weather: each end says its last word at some time, plainly or with a reason, or is dropped without one,
//! and words get lost. Against the model that nothing that is cut looks complete, and that everybody learns why it is over.

use super::*;

/// A session that ends is over on both sides, or known to be, within so many looks once the network is well.
const LOOKS: usize = 10_000;

/// What an end says last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Last {
    /// All is said.
    Complete,
    /// It will not go on, for a reason.
    Refused(Refusal),
    /// Nothing: its owner dropped it, and it says what needs no waiting.
    Dropped,
}

impl Last {
    fn any(side: usize, rng: &mut StdRng) -> Last {
        match rng.random_range(0..3) {
            0 => Last::Complete,
            1 => Last::Refused(Refusal::new(RefusalCode::Denied, format!("side {side} will not"))),
            _ => Last::Dropped,
        }
    }
}

/// Two ends, what they said last, and what each was told first.
struct Parting {
    world: World,
    said: [Option<Last>; 2],
    verdicts: [Option<Ended>; 2],
}

impl Parting {
    fn of(world: World) -> Parting {
        Parting { world, said: [None, None], verdicts: [None, None] }
    }

    /// As the shell, when those above it shut down, end it for a reason, or drop it.
    fn say(&mut self, side: usize, last: Last) {
        if self.said[side].is_some() || self.verdicts[side].is_some() {
            return;
        }
        self.said[side] = Some(last.clone());
        self.world.closed[side] = true;
        let core = &mut self.world.cores[side];
        match last {
            Last::Complete => core.finish(None),
            Last::Refused(refusal) => {
                core.finish(Some(refusal.clone()));
                core.end(Ended::Refused(refusal));
            }
            Last::Dropped => self.leave(side),
        }
        self.look();
    }

    /// As the shell, when its owner sees that it is over.
    fn may_leave(&mut self, side: usize) {
        let core = &self.world.cores[side];
        let shut_down = self.said[side] == Some(Last::Complete) && core.is_finished();
        if core.ended().is_some() || shut_down {
            self.leave(side);
        }
    }

    /// As the shell when it is dropped: what needs no waiting is said, and carriers close behind it.
    fn leave(&mut self, side: usize) {
        if self.world.gone[side] {
            return;
        }
        self.world.read(side);
        if self.world.cores[side].ended().is_none() {
            self.world.cores[side].finish(None);
        }
        for _ in 0..2 {
            for link in 0..self.world.links.len() {
                self.world.pump(link, side);
            }
        }
        self.world.cores[side].end(Ended::Local("the session was ended here".into()));
        (self.world.closed[side], self.world.gone[side]) = (true, true);
        for link in &mut self.world.links {
            link.ids[side] = None;
            link.hole[side] = true;
            link.queues[side].clear();
        }
        self.world.bury();
        self.look();
    }

    /// What each was told stays, and is true.
    fn look(&mut self) {
        for side in [DIALER, LISTENER] {
            let Some(ended) = self.world.cores[side].ended().cloned() else { continue };
            let verdict = self.verdicts[side].get_or_insert(ended.clone());
            assert_eq!(*verdict, ended, "side {side} was told twice");
            let (own, other) = (&self.said[side], &self.said[1 - side]);
            match ended {
                Ended::Complete => {
                    assert!(matches!(other, Some(Last::Complete | Last::Dropped)), "side {side}: {other:?}");
                    self.world.read(side);
                    assert_eq!(self.world.read[side], self.world.written[1 - side], "what is cut looks complete");
                }
                Ended::Refused(refusal) => {
                    let said = Some(Last::Refused(refusal.clone()));
                    let unknown = side == DIALER && self.world.gone[LISTENER] && refusal == World::unknown();
                    assert!(*own == said || *other == said || unknown, "side {side}: {refusal}");
                }
                Ended::Local(_) => assert!(own.is_some(), "side {side} has ended nothing"),
                Ended::Expired => assert!(self.world.gone[1 - side], "somebody would have come"),
                Ended::Position(_) => {
                    assert!(matches!(other, Some(Last::Complete | Last::Dropped)), "side {side}: {other:?}");
                    self.world.read(side);
                    assert_ne!(self.world.read[side], self.world.written[1 - side], "what is complete looks cut");
                }
                Ended::BrokenEarly(_) => panic!("side {side}: {ended:?}"),
            }
        }
    }

    /// The network does something, or somebody sees that it is over.
    fn step(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..20) {
            0 => self.may_leave(rng.random_range(0..2)),
            _ => self.world.weather(rng),
        }
        self.look();
    }

    /// Everything that is on its way arrives; who is there reads, and sees which carriers were closed.
    fn calm(&mut self) {
        for side in [DIALER, LISTENER] {
            for link in 0..self.world.links.len() {
                self.world.pump(link, side);
            }
        }
        for side in [DIALER, LISTENER] {
            for link in (0..self.world.links.len()).rev() {
                while link < self.world.links.len() && !self.world.links[link].queues[side].is_empty() {
                    self.world.deliver(link, side);
                }
                if self.world.links.get(link).is_some_and(|link| link.ids[1 - side].is_none() && link.answered) {
                    self.world.cut(link, side, "closed");
                }
            }
            self.world.read(side);
        }
        self.world.bury();
        self.look();
    }

    /// The network is well again, and the laptop comes back as long as its session is there.
    fn settle(&mut self) {
        self.world.blow_over();
        for _ in 0..LOOKS {
            if self.world.links.is_empty() {
                self.world.dial(Route::Relay, AttachMode::Move);
            }
            self.calm();
            [DIALER, LISTENER].into_iter().for_each(|side| self.may_leave(side));
            // Nobody comes back to a workspace whose laptop has left: it waits for a day.
            if self.verdicts[DIALER].is_some() && (self.verdicts[LISTENER].is_some() || self.world.links.is_empty()) {
                break;
            }
            self.world.pass(Duration::from_millis(5));
        }
        assert!(self.verdicts[DIALER].is_some(), "the laptop was not told: {:?}", self.world.cores);
        if self.verdicts[LISTENER].is_none() {
            self.world.pass(RETENTION);
            self.look();
            assert_eq!(self.verdicts[LISTENER], Some(Ended::Expired));
        }
    }
}

/// How often something came about.
#[derive(Debug, Default)]
struct Tally {
    complete: usize,
    refused: usize,
    unknown: usize,
    expired: usize,
    cut: usize,
}

impl Tally {
    fn count(&mut self, verdict: Option<&Ended>) {
        match verdict {
            Some(Ended::Complete) => self.complete += 1,
            Some(Ended::Refused(refusal)) if *refusal == World::unknown() => self.unknown += 1,
            Some(Ended::Refused(_)) => self.refused += 1,
            Some(Ended::Expired) => self.expired += 1,
            Some(Ended::Position(_)) => self.cut += 1,
            _ => {}
        }
    }
}

/// Sessions that end in a storm, until so many steps are done.
fn partings(seed: u64, steps: u64) -> Tally {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut done = 0;
    while done < steps {
        let mut parting = Parting::of(World::new());
        let (before, after) = (rng.random_range(0..1500), rng.random_range(0..500));
        done += before + after;
        for _ in 0..before {
            parting.step(&mut rng);
        }
        // Else hardly any word would find a way.
        if rng.random() {
            parting.world.settle();
        }
        // One of them, the other a little later, or both at the same time.
        let first = rng.random_range(0..2);
        let word = Last::any(first, &mut rng);
        parting.say(first, word);
        let second = [0, 0, rng.random_range(0..=after), after + 1][rng.random_range(0..4)];
        for at in 0..after {
            if at == second {
                let word = Last::any(1 - first, &mut rng);
                parting.say(1 - first, word);
            }
            parting.step(&mut rng);
        }
        parting.settle();
        parting.verdicts.iter().for_each(|verdict| tally.count(verdict.as_ref()));
    }
    tally
}

#[test]
fn nothing_that_is_cut_looks_complete_and_everybody_learns_why() {
    let tally = partings(0, 100_000);
    let Tally { complete, refused, unknown, expired, cut } = tally;
    let often = [complete, refused, unknown, expired + cut].into_iter().min() > Some(5);
    assert!(often && expired > 0 && cut > 0, "the weather was too fair: {tally:?}");
}

/// A million steps, and more of them with `NEXUS_SIMULATION_STEPS`.
#[test]
#[ignore = "takes minutes in a development build; scripts/test --long runs it"]
fn a_million_steps_towards_ends() {
    println!("{:?}", partings(some_seed(), many_steps()));
}

#[test]
fn ends_are_told_and_told_apart() {
    let mut world = steady();
    world.write(DIALER, 50);
    world.cores[DIALER].finish(None);
    world.pump(0, DIALER);
    while !world.links[0].queues[LISTENER].is_empty() {
        world.deliver(0, LISTENER);
    }
    world.read(LISTENER);
    assert_eq!(world.read[LISTENER], world.written[DIALER]);
    assert_eq!(world.cores[LISTENER].ended(), Some(&Ended::Complete));

    // The end overtakes what is before it, on another carrier.
    let mut world = steady();
    let relay = world.links[0].ids[LISTENER].unwrap();
    world.write(DIALER, 50);
    let end = LifelineMessage::End { offset: world.written[DIALER], refusal: None }.encode();
    world.cores[LISTENER].message(relay, end, world.now).unwrap();
    assert_eq!(world.cores[LISTENER].ended(), None);
    world.pump(0, DIALER);
    while !world.links[0].queues[LISTENER].is_empty() {
        world.deliver(0, LISTENER);
    }
    world.read(LISTENER);
    assert_eq!(world.cores[LISTENER].ended(), Some(&Ended::Complete));

    let mut world = steady();
    let refusal = Refusal::new(RefusalCode::TakenOver, "another came");
    world.cores[LISTENER].finish(Some(refusal.clone()));
    world.pump(0, LISTENER);
    while !world.links[0].queues[DIALER].is_empty() {
        world.deliver(0, DIALER);
    }
    assert_eq!(world.cores[DIALER].ended(), Some(&Ended::Refused(refusal)));
}

#[test]
fn an_end_of_which_a_part_can_never_arrive_is_told_at_once() {
    for beside in [false, true] {
        let mut world = steady();
        if beside {
            stand_by_directly(&mut world);
        }
        let relay = world.links[0].ids[LISTENER].unwrap();
        let end = LifelineMessage::End { offset: world.written[DIALER] + 1, refusal: None }.encode();
        world.cores[LISTENER].message(relay, end, world.now).unwrap();
        world.cut(0, LISTENER, "closed");
        // Another carrier may still bring it.
        assert_eq!(world.cores[LISTENER].ended().is_some(), !beside);
        if beside {
            world.cut(1, LISTENER, "closed");
        }
        assert!(matches!(world.cores[LISTENER].ended(), Some(Ended::Position(_))));
    }
}

/// Both ends are there, and bytes are on their way on one route, with another one beside it.
fn under_way(route: Route) -> World {
    let mut world = steady();
    stand_by_directly(&mut world);
    if route == Route::Direct {
        let id = world.links[1].ids[DIALER].unwrap();
        assert!(world.cores[DIALER].go_over(id, world.now));
        exchange(&mut world, 1, DIALER);
        let relays = world.links.iter().filter(|link| link.route == Route::Relay).count();
        assert_eq!(relays, 1, "the way through the coordinator stays beside it");
    }
    for side in [DIALER, LISTENER] {
        world.write(side, 100_000);
    }
    world
}

#[test]
fn in_fair_weather_the_last_word_arrives_with_its_reason() {
    let reason = Refusal::new(RefusalCode::TakenOver, "another came");
    for route in [Route::Relay, Route::Direct] {
        for side in [DIALER, LISTENER] {
            for last in [Last::Complete, Last::Refused(reason.clone()), Last::Dropped] {
                let mut parting = Parting::of(under_way(route));
                parting.say(side, last.clone());
                for _ in 0..4 {
                    parting.may_leave(side);
                    parting.calm();
                }
                let expected = match last {
                    Last::Refused(reason) => Ended::Refused(reason),
                    Last::Complete | Last::Dropped => Ended::Complete,
                };
                assert_eq!(parting.verdicts[1 - side], Some(expected), "{route:?}, side {side}");
            }
        }
    }
}

#[test]
fn both_may_say_their_last_word_at_the_same_time() {
    let reasons = [DIALER, LISTENER].map(|side| Refusal::new(RefusalCode::Denied, format!("side {side} will not")));
    for route in [Route::Relay, Route::Direct] {
        let mut parting = Parting::of(under_way(route));
        for side in [DIALER, LISTENER] {
            parting.say(side, Last::Refused(reasons[side].clone()));
        }
        parting.settle();
        assert_eq!(parting.verdicts, reasons.clone().map(|reason| Some(Ended::Refused(reason))), "each knows its own");

        let mut parting = Parting::of(under_way(route));
        for side in [DIALER, LISTENER] {
            parting.say(side, Last::Complete);
        }
        for _ in 0..4 {
            parting.calm();
        }
        assert_eq!(parting.verdicts, [Some(Ended::Complete), Some(Ended::Complete)], "{route:?}");

        // Only one of them has a reason, and it is the one that is told.
        let mut parting = Parting::of(under_way(route));
        parting.say(DIALER, Last::Complete);
        parting.say(LISTENER, Last::Refused(reasons[LISTENER].clone()));
        for _ in 0..4 {
            parting.calm();
        }
        assert_eq!(parting.verdicts[DIALER], Some(Ended::Refused(reasons[LISTENER].clone())), "{route:?}");
    }
}
