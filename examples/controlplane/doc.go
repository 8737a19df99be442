// Controlplane is a control plane on hashicorp/raft with a keyring: a store of secrets and an
// issuer of workload identities, on three servers.
//
//	controlplane init [-port 8001] [-servers 3] DIR       make certificates, KEKs and addresses
//	controlplane serve [-every 720h] [-rate 0] [-clicks] [-escrow RECIPIENT,...] [-identity FILE] [-token FILE] DIR ID       run one of them: s1, s2, s3
//
//	controlplane [-server URL] put [-if VERSION] [-empty] PATH         store standard input
//	controlplane [-server URL] get [-stale] PATH       likewise
//	controlplane [-server URL] list [-stale] [PREFIX]       what the leader has; -stale: what that server has, which may be late
//	controlplane [-server URL] identity [-aud A,B] [-ttl 10m] WORKLOAD        print a token
//
//	controlplane [-server URL] keys status [-json]       keys, servers, problems
//	controlplane [-server URL] keys rotate [-publish 5m] [-full] [-compromised]       without -publish the key signs at once: for emergencies
//	controlplane [-server URL] keys remove [-force] [-now] ID
//	controlplane [-server URL] keys adopt ID       take in the key of a file that the keyring does not know
//	controlplane [-server URL] keys rewrap       wrap that server's key files under its present KEKs alone
//
//	controlplane [-server URL] servers add [-addr HOST:PORT] ID       a new one may join, or one has moved
//	controlplane [-server URL] servers remove [-force] ID       refused while a key would be held by too few
//	controlplane [-server URL] servers token [-ttl 1h] ID       print a token with which that server may join: see serve -token
//	controlplane [-server URL] servers tokens       those that have not ended
//	controlplane [-server URL] servers withdraw TOKEN-ID
//
//	controlplane [-server URL] backup -to RECIPIENT,... FILE        everything, for age recipients; prints its SHA-256
//	controlplane verify -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] BACKUP       says whether it restores
//	controlplane restore -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] [-unauthenticated] [-data-only] [-force] DIR ID BACKUP       makes the directory of a server
//	controlplane recover [-force] DIR ID       makes a server the only one, when the majority is lost; none may run
//	controlplane inspect [-kek FILE,...] KEYSTORE-DIR       what lies there; a star marks the KEKs that open a key
//
// URL is any server's, http://127.0.0.1:8001 if it is not given; HOST:PORT alone is http. There a page says whether
// all is well and which command helps if not, and shows keys and servers, with buttons that rotate and remove keys if
// the server runs with -clicks. -every is how often keys rotate,
// -rate how many secrets a second a full rotation may re-encrypt. With -escrow each key is wrapped to age
// recipients too; when DIR/ID.kek is lost, make another (head -c 32 /dev/urandom) and start once with
// their -identity. restore wants to know whose the backup is: by the SHA-256 that backup has printed, by the
// signer, which keys status shows, or -unauthenticated. With -data-only it is a drill: another cluster, whose tokens
// nobody else takes. restore and recover refuse while another server answers, unless -force is set. A file FILE.*.part beside a backup is what backup leaves when
// the machine stops meanwhile: it is no backup, and may be deleted; the next backup there names it. For the cluster
// there is a backup once its file is synced and has its name, and backup has said so. KEYSTORE-DIR is DIR/ID/keystore, its KEK is DIR/ID.kek, and its server may run. Each
// command has -h.
//
// For scripts, the exit status is
//
//	0   good
//	1   it failed: a disk, a server that is away or refuses, what is there already
//	2   wrong usage: a flag, an argument, a command
//	3   what was looked at is not good: verify says that the backup does not restore with these
//	    identities, inspect that something is wrong with a file, that no KEK given opens it or that
//	    there is no key, keys status that there is a problem which is more than a notice
//
// While the server that is asked hears from no leader, a command that needs one fails within half a minute, with status 1. It
// sends to keys status of the others, which may have a leader, and names recover, which is for when most of the servers are gone for
// good. keys status ends within 5 seconds, also when the server that is asked takes connections and hangs.
//
// It is made to be copied from. What a program needs to have a keyring is in store.go, its own FSM,
// around the Map of package records, with which full rotation and the removal of keys work;
// and serve.go, a server from its configuration to its end. The rest is the program: api.go for
// users and workloads, requests.go what is taken of them, refusals.go with which status it is refused, operator.go and members.go for operators; view.go,
// causes.go, order.go and remedies.go what they are shown, which follows from the statuses of all servers alone, and page.go the
// page that draws it; keks.go what wraps the keys, client.go the command line, terminal.go what a terminal may be
// sent, backup.go backups from end to end, inspect.go a look into a keystore, progress.go what a terminal shows
// meanwhile, setup.go what a first trial needs.
//
// The API has no passwords and listens on loopback only: anybody on the machine may do everything
// but what a workload's token narrows. A page of another origin gets nothing but the documents for relying parties.
// A workload's name has no slash. A parameter ?force=false is false, and one that the request does not take is an error. A service in the field has TLS and authentication there.
package main
