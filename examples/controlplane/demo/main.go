// Demo shows a full rotation under load, with two leaders killed in the middle of it.
//
//	go run ./examples/controlplane/demo
//
// It starts the three servers of examples/controlplane, each a process of its own, and puts 2,000
// secrets. Then it rotates fully, while writers go on, and kills the leader with SIGKILL twice
// before all is moved; each comes back. In the end every secret has to open on every server, to
// what its writer put last, and none may be under an old key. The exit status is 1 if that is not
// so, or if anything else fails.
//
// It uses the control plane as anybody would, over HTTP. The file servers.go is the processes,
// writer.go the load, and main.go the story.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"
)

const (
	kills  = 2
	enough = 3 * time.Minute // for all of it
)

func main() {
	secrets := flag.Int("secrets", 2000, "how many secrets to store")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *secrets, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run is the program. When it returns, no process and no file of it is left.
func run(ctx context.Context, secrets int, out io.Writer) (err error) {
	if secrets < workers {
		return fmt.Errorf("-secrets %d: at least one for each of the %d writers", secrets, workers)
	}
	dir, err := os.MkdirTemp("", "controlplane-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(ctx, enough)
	defer cancel()
	d := &demo{out: out, began: time.Now(), dir: filepath.Join(dir, "cluster"), program: filepath.Join(dir, "controlplane")}
	if err := d.build(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, id := range d.ids() {
		if err := d.start(id); err != nil {
			return err
		}
	}
	lead, err := d.leader(ctx, func(s status) bool { return s.Ready && len(s.Keys) > 0 })
	if err != nil {
		return err
	}
	old := lead.Keys[0].ID
	d.say("%s leads; see %s", lead.ID, d.url(lead.ID))

	w := newWriters(d, secrets)
	if err := w.fill(ctx); err != nil {
		return err
	}
	d.say("%d secrets are under %s", secrets, short(old))

	rest, load := make(chan struct{}), make(chan error, 1)
	go func() { load <- w.overwrite(ctx, rest) }()
	err = d.rotate(ctx, secrets)
	close(rest)
	if err := errors.Join(err, <-load); err != nil {
		return err
	}
	if w.puts() == 0 {
		return errors.New("no secret was put during the rotation: there was no load")
	}
	end, err := d.leader(ctx, func(s status) bool { return !s.has("rekeying") })
	if err != nil {
		return err
	}
	d.say("all secrets are re-encrypted; %d secrets were put meanwhile, a put took at most %v", w.puts(), w.longest().Round(time.Millisecond))
	if err := d.table(end); err != nil {
		return err
	}
	return d.check(ctx, w, end)
}

// rotate rotates fully and kills the leader twice while secrets are being moved.
func (d *demo) rotate(ctx context.Context, secrets int) error {
	lead, err := d.leader(ctx, nil)
	if err != nil {
		return err
	}
	var key keyStatus
	if err := d.call(ctx, lead.ID, "POST", "/v1/keys", map[string]bool{"full": true}, &key); err != nil {
		return err
	}
	d.say("rotated fully: %s is active", short(key.ID))
	for i := range kills {
		part := secrets * (i + 1) / (kills + 2)
		lead, err := d.leader(ctx, func(s status) bool { return s.under(key.ID) >= part })
		if err != nil {
			return err
		}
		d.say("%s was killed, with %d of %d re-encrypted", lead.ID, lead.under(key.ID), lead.Secrets)
		if err := d.kill(lead.ID); err != nil {
			return err
		}
		next, err := d.leader(ctx, func(s status) bool { return s.Ready })
		if err != nil {
			return err
		}
		d.say("%s leads", next.ID)
		if err := d.start(lead.ID); err != nil {
			return err
		}
	}
	return nil
}

// table prints the keys.
func (d *demo) table(s status) error {
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nKEY\tSTATE\tSECRETS\tHELD BY")
	for _, k := range s.Keys {
		fmt.Fprintf(w, "%s\t%s\t%d\t%v\n", short(k.ID), k.State, k.Secrets, k.Holders)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// check reads every secret on every server.
func (d *demo) check(ctx context.Context, w *writers, end status) error {
	if old := end.Secrets - end.under(end.Keys[0].ID); old > 0 {
		return fmt.Errorf("%d secrets are under old keys", old)
	}
	for _, id := range d.ids() {
		if _, err := d.await(ctx, func(s status) bool { return s.ID == id && s.Index >= w.newest() }); err != nil {
			return err
		}
		good, err := w.check(ctx, id)
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		d.say("%s decrypts %d of %d secrets", id, good, end.Secrets)
	}
	return nil
}

func short(id string) string { return id[:8] }

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.2f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}
