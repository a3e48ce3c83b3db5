"""One file a stage: its public function, what it reads and writes in the run folder, what its fingerprint covers."""
